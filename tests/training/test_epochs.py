"""Runs of official configs with a tiny network: epochs, validation on several splits, and what a SIGKILL loses."""

import json
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from instancevg_jax import train
from tests import oracle
from tests.data_pipelines.make import HEIGHT, WIDTH, annotation, picture
from tests.test_train import SMALL

REFER = {
    "refcoco/refs(unc).p": ("train", "val", "testA", "testB"),
    "refcoco+/refs(unc).p": ("train", "val", "testA", "testB"),
    "refcocog/refs(umd).p": ("train", "val", "test"),
}


def prepared(folder: Path) -> list[str]:
    """Prepare the real sample of gRefCOCO. Returns the arguments of a run on it."""
    root = oracle.data("refcoco_real")
    source = ["--annotations", root / "annotations" / "grefs" / "instance.json"]
    source += ["--images", root / "images" / "mscoco" / "train2014", "--data-dir", folder / "data"]
    subprocess.run([sys.executable, "-m", "data_pipelines.prepare", "grefcoco", *map(str, source)], check=True)
    return ["--config=configs/grefcoco.py", *tiny(folder), "--config.train.num_epochs=3"]


def tiny(folder: Path) -> list[str]:
    """Arguments for a tiny network on the data prepared in FOLDER/data."""
    (folder / "tiny.spm").write_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes())
    return [
        *SMALL[1:],
        "--config.model.pretrained=",
        "--config.model.vocab_size=120",
        f"--config.data.data_dir={folder / 'data'}",
        f"--config.data.tokenizer={folder / 'tiny.spm'}",
        "--config.train.log_every=1",
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_three_epochs_killed_in_the_third_and_resumed(tmp_path):
    """Every epoch is validated and saved, at most one is lost, and the best models are measured on all test splits."""
    command = [sys.executable, "-m", "instancevg_jax.train", *prepared(tmp_path), f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if re.match(r"step \d+/\d+, epoch 3/3, .* loss", line):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL, "".join(printed)
    (per_epoch,) = {
        int(n) for line in printed for n in re.findall(r"saving every (\d+) steps, validating every \1 on val", line)
    }
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from step {2 * per_epoch}" in resumed.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = [(row["step"], row["group"]) for row in rows if row["group"] != "train" and "model" not in row]
    assert validated == [(epoch * per_epoch, "val") for epoch in (1, 2, 3)]
    for folder, metric in {"best": "gIoU", "best_detection": "F1", "best_segmentation": "cIoU"}.items():
        provenance = json.loads((tmp_path / "run" / folder / "provenance.json").read_text())
        assert provenance["best"]["metric"] == metric
        measured = [row["group"] for row in rows if folder in row.get("model", "").split(", ")]
        assert measured == ["val", "testA", "testB"]


def refer_files(folder: Path) -> list[Path]:
    """RefCOCO, RefCOCO+ and RefCOCOg in the refer layout, with one reference and one picture per split."""
    for number, (name, splits) in enumerate(REFER.items(), 1):
        path = folder / name
        path.parent.mkdir()
        ids = [10 * number + i for i in range(len(splits))]
        names = [picture(folder / "images", f"{i}.jpg", shade=i).name for i in ids]
        sentences = [{"raw": "the square", "sent_id": 1}]
        references = [
            {"ref_id": i, "image_id": i, "ann_id": i, "split": split, "sentences": sentences}
            for i, split in zip(ids, splits, strict=True)
        ]
        path.write_bytes(pickle.dumps(references))
        images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in zip(ids, names, strict=True)]
        objects = [annotation(id=i, image_id=i) for i in ids]
        path.with_name("instances.json").write_text(json.dumps({"images": images, "annotations": objects}))
    return [folder / name for name in REFER]


@pytest.mark.slow
def test_the_mixture_of_three_refer_files(tmp_path, capsys):
    """The training splits are joined, each validation split is measured in every epoch, and every split at the end."""
    prepare("refcoco", refer_files(tmp_path), tmp_path / "images", tmp_path / "data", merge="refcoco")
    arguments = ["--config=configs/refcoco.py", *tiny(tmp_path), "--config.train.batch_size=3"]
    train.main([*arguments, "--config.train.num_epochs=2", f"--workdir={tmp_path / 'run'}"])
    validated = ["val_refcoco_unc", "val_refcocoplus_unc", "val_refcocog_umd"]
    printed = capsys.readouterr().out
    assert (
        f"2 steps (2 epochs), batch size 3 (3 per device), saving every 1 steps, validating every 1 on {', '.join(validated)}"
        in printed
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    while_training = [(row["step"], row["group"]) for row in rows if row["group"] != "train" and "model" not in row]
    assert while_training == [(step, split) for step in (1, 2) for split in validated]
    assert [row["group"] for row in rows if "best" in row.get("model", "").split(", ")] == [
        *("val_refcoco_unc", "testA_refcoco_unc", "testB_refcoco_unc"),
        *("val_refcocoplus_unc", "testA_refcocoplus_unc", "testB_refcocoplus_unc"),
        *("val_refcocog_umd", "test_refcocog_umd"),
    ]
