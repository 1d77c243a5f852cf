"""Writes tests/convert/data with a real torch: `python -m tests.convert.torch_file.make_data`, where torch is installed.

Every file has its tensors' expected dtype, shape and bytes in expected.json, so the reader is tested on machines without torch.
"""

import argparse
import collections
import json
import zipfile
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parent / "data"
SWAPPED = {"float32": 4, "bfloat16": 2, "int64": 8, "complex64": 4}


def every_dtype() -> dict[str, torch.Tensor]:
    values = torch.tensor([0.0, 1.0, -2.5, 3.25, 448.0])
    names = [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int64",
        "int32",
        "int16",
        "int8",
    ]
    tensors = {name: values.to(getattr(torch, name)) for name in names if name != "int8"}
    tensors["int8"] = torch.tensor([-128, 0, 127], dtype=torch.int8)
    tensors["bool"] = torch.tensor([True, False, True])
    tensors["complex64"] = torch.tensor([1 + 2j, -3.5j])
    tensors |= {
        name: torch.tensor([0, 1, 250], dtype=getattr(torch, name)) for name in ("uint8", "uint16", "uint32", "uint64")
    }
    return tensors


def every_layout() -> dict[str, torch.Tensor]:
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return {
        "whole": whole,
        "transposed": whole.permute(2, 0, 1),
        "slice": whole[1, :, 1:3],
        "step": whole.flatten()[3::5],
        "expanded": torch.tensor([1.5, 2.5])[:, None].expand(2, 3),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
    }


def training_run() -> dict:
    """As the original saves it, with what other people's files hold beside."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for i, value in enumerate(model.state_dict().values()):
            value.copy_(torch.full_like(value, i + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, amsgrad=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [7])
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    state = collections.OrderedDict((f"module.{key}", value) for key, value in model.state_dict().items())
    return {
        "epoch": 3,
        "lr": 5e-4,
        "best_gIoU": np.float64(61.5),
        "best_array": np.arange(3),
        "args": argparse.Namespace(name="x", sizes=[1, 2]),
        "seen": {1, 2},
        "state_dict": state,
        "ema_state_dict": collections.OrderedDict((key, value + 1) for key, value in state.items()),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }


def big_endian(source: Path, target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The same archive as a big-endian machine writes it; torch itself confirms the meaning."""
    itemsizes = list(SWAPPED.values())
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            parts = name.split("/")
            if parts[1] == "byteorder":
                data = b"big"
            if parts[1] == "data":
                data = np.frombuffer(data, f"u{itemsizes[int(parts[2])]}").byteswap().tobytes()
            new.writestr(name, data)
    for name, value in torch.load(target).items():
        assert torch.equal(value, tensors[name]), name


def describe(tensors: dict[str, torch.Tensor]) -> dict:
    return {
        key: {
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "bytes": value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes().hex(),
        }
        for key, value in tensors.items()
    }


def main() -> None:
    torch.manual_seed(0)
    DATA.mkdir(exist_ok=True)
    dtypes, layouts, run = every_dtype(), every_layout(), training_run()
    swapped = {name: dtypes[name] for name in SWAPPED}
    old = {
        name: value for name, value in dtypes.items() if not name.startswith(("float8", "uint16", "uint32", "uint64"))
    }
    torch.save(dtypes, DATA / "dtypes.pth")
    torch.save(layouts, DATA / "layouts.pth")
    torch.save(run, DATA / "training.pth")
    torch.save(run, DATA / "training_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(old | layouts, DATA / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": layouts}, DATA / "protocol4.pth", pickle_protocol=4)
    torch.save(swapped, DATA / "little.pth")
    big_endian(DATA / "little.pth", DATA / "big_endian.pth", swapped)
    (DATA / "little.pth").unlink()
    torch.serialization.set_crc32_options(False)
    torch.save(layouts, DATA / "no_checksums.pth")
    model = {key.removeprefix("module."): value for key, value in run["state_dict"].items()}
    expected = {
        "dtypes.pth": dtypes,
        "layouts.pth": layouts,
        "training.pth": model,
        "training_legacy.pth": model,
        "legacy.pth": old | layouts,
        "protocol4.pth": layouts,
        "big_endian.pth": swapped,
        "no_checksums.pth": layouts,
    }
    text = json.dumps({name: describe(tensors) for name, tensors in expected.items()}, indent=1)
    (DATA / "expected.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
