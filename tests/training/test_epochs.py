"""configs/grefcoco.py with a tiny network on the real sample: three epochs, killed in the third, resumed."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import oracle
from tests.test_train import SMALL


def prepared(folder: Path) -> list[str]:
    """Prepare the real sample of gRefCOCO. Returns the arguments of a run on it."""
    root = oracle.data("refcoco_real")
    source = ["--annotations", root / "annotations" / "grefs" / "instance.json"]
    source += ["--images", root / "images" / "mscoco" / "train2014", "--data-dir", folder / "data"]
    subprocess.run([sys.executable, "-m", "data_pipelines.prepare", "grefcoco", *map(str, source)], check=True)
    (folder / "tiny.spm").write_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes())
    return [
        "--config=configs/grefcoco.py",
        *SMALL[1:],
        "--config.model.pretrained=",
        "--config.model.vocab_size=120",
        f"--config.data.data_dir={folder / 'data'}",
        f"--config.data.tokenizer={folder / 'tiny.spm'}",
        "--config.train.num_epochs=3",
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
