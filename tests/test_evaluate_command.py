"""evaluate as users run it, on the model that comes with the package: table, sweep, COCO results, metrics.json and report."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs import refcoco
from instancevg_jax import evaluate
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.evaluator import metric_names
from instancevg_jax.evaluation.sweep import SWEPT

COMMAND = ["--config=configs/shapes.py", f"--checkpoint={DEMO_CHECKPOINT}"]


def test_everything_at_once(tmp_path: Path):
    """The sweep's row at the config's threshold is the plain evaluation, to the last digit."""
    arguments = [
        *COMMAND,
        f"--output={tmp_path}",
        "--sweep",
        "--coco",
        "--config.data.num_eval_examples=13",
        "--config.eval.batch_size=8",
        "--config.eval.protocol=strict",
        "--config.eval.resolution=original",
    ]
    command = [sys.executable, "-m", "instancevg_jax.evaluate", *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    label = "strict protocol, compared at each picture's own pixels, softmax rule"
    assert f"{label}, score threshold 0.5\n" in printed
    assert "->      0.5" in printed
    assert "best: F1 at " in printed

    result = json.loads((tmp_path / "metrics.json").read_text())["splits"]["val"]
    assert (result["records"], result["protocol"], result["resolution"]) == (13, "strict", "original")
    (row,) = [row for row in result["sweep"] if row["score_threshold"] == 0.5]
    assert len(result["sweep"]) == 19
    assert {name: row[name] for name in SWEPT} == {name: result["by_rule"]["softmax"][name] for name in SWEPT}
    assert set(result["best_threshold"]) == set(SWEPT)

    entries = json.loads((tmp_path / "predictions_val.json").read_text())
    assert entries
    assert all(entry["score"] > 0.5 and entry["segmentation"]["size"] == [96, 96] for entry in entries)
    report = (tmp_path / "report.html").read_text()
    for part in (f"{label.replace(chr(39), '&#x27;')}", "over score thresholds", 'class="mark"', "language only"):
        assert part in report


def test_columns_of_long_names_stay_apart(capsys):
    config = refcoco.get_config()
    measured: Any = SimpleNamespace(split="val_refcoco_unc", metrics=dict.fromkeys(metric_names(config), 100.0))
    evaluate.print_table([measured], config)
    names, values = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert names == metric_names(config)
    assert values == ["val_refcoco_unc", *["100.00"] * len(names)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--coco"], "--coco writes into the directory of --output, which is not given"),
        (["--config.eval.protocol=lenient"], "protocol is 'lenient'; expected one of official, strict"),
        (["--config.data.eval_splits=()"], "data.eval_splits is empty"),
        (["--sweep=maybe"], "sweep"),
    ],
)
def test_bad_command_lines_are_one_line(arguments, says):
    with pytest.raises(InputError, match=says) as caught:
        evaluate.main([*COMMAND, *arguments])
    assert "\n" not in str(caught.value).strip()


def test_help_names_the_switches(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    printed = capsys.readouterr().out
    assert "--sweep" in printed
    assert "--coco" in printed
