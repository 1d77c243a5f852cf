"""From annotation files and JPEGs to metrics and a report, for all four families, on a small real sample."""

import json
import subprocess
import sys

import numpy as np
import pytest

from instancevg_jax import evaluate, train
from tests import oracle
from tests.test_train import SMALL

FAMILIES = {
    "grefcoco": ("grefs/instance.json", "val", ("gIoU", "cIoU", "F1")),
    "refcoco": ("mixed-seg/instances_nogoogle_withid.json", "val_refcoco_unc", ("DetACC@0.5", "mIoU", "oIoU")),
    "refzom": ("ref-zom/instance.json", "test", ("mIoU", "oIoU", "Acc")),
    "rrefcoco": ("rrefcoco/instance.json", "val_rrefcoco", ("mIoU", "mRR", "rIoU")),
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_prepare_train_evaluate(family, tmp_path):
    annotations, split, names = FAMILIES[family]
    root = oracle.data("refcoco_real")
    source = ["--annotations", str(root / "annotations" / annotations)]
    images = root / "images" / "mscoco" / "train2014"
    source += ["--images", str(images)]
    checking = [sys.executable, "-m", "data_pipelines.check", family, *source]
    checked = subprocess.run(checking, check=False, capture_output=True, text=True)
    # the sample's splits are cut from the same pictures, except RefCOCO's
    status = 0 if family == "refcoco" else 1
    assert checked.returncode == status, checked.stderr
    faults = [line.split("  ")[0] for line in checked.stdout.splitlines() if "FAULT" in line]
    assert faults == ["picture in train and in another split"] * status
    command = [sys.executable, "-m", "data_pipelines.prepare", family, *source]
    subprocess.run([*command, "--data-dir", str(tmp_path / "data")], check=True)
    tokenizer = tmp_path / "tiny.spm"
    tokenizer.write_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes())
    arguments = [
        f"--config=configs/{family}.py",
        *SMALL[1:],
        "--config.model.pretrained=",
        "--config.model.vocab_size=120",
        f"--config.data.data_dir={tmp_path / 'data'}",
        f"--config.data.tokenizer={tokenizer}",
        f"--config.data.validation_splits=('{split}',)",
        f"--config.data.eval_splits=('{split}',)",
        "--config.train.num_steps=2",
        *([f"--config.data.train_split={split}"] if family == "refcoco" else []),  # the sample has no training split
    ]
    train.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    checkpoint, report = tmp_path / "run" / "checkpoint", tmp_path / "report"
    measured = ["--config.eval.resolution=original", "--config.eval.score_threshold=0.2", "--sweep", "--coco"]
    evaluate.main([*arguments, *measured, f"--checkpoint={checkpoint}", f"--output={report}"])
    result = json.loads((report / "metrics.json").read_text())["splits"][split]
    assert (result["records"], result["resolution"], len(result["sweep"])) == (13, "original", 19)
    pictures = {i["id"]: [i["height"], i["width"]] for i in json.loads((root / "instances.json").read_text())["images"]}
    for entry in json.loads((report / f"predictions_{split}.json").read_text()):
        assert entry["segmentation"]["size"] == pictures[entry["image_id"]]
    for name in names:
        value = result["by_rule"]["sigmoid"][name]
        assert value is None or np.isfinite(value)
    assert (report / "report.html").stat().st_size > 50_000
