"""evaluate as users run it, on the model that comes with the package: table, sweep, COCO results, metrics.json and report."""

import html
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from configs import refcoco
from instancevg_jax import evaluate
from instancevg_jax.answers.postprocess import to_original_size
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import drawing, outputs
from instancevg_jax.evaluation.evaluator import metric_names
from instancevg_jax.evaluation.metrics import Row
from instancevg_jax.evaluation.sweep import SWEPT
from instancevg_jax.types import Predictions

NOTHING = Predictions(
    boxes_xyxy=np.zeros((1, 1, 4), np.float32),
    scores=np.zeros((1, 1), np.float32),
    masks=np.zeros((1, 1, 8, 8), bool),
    keep=np.zeros((1, 1), bool),
    mask=np.zeros((1, 8, 8), bool),
    no_target_probability=np.ones(1, np.float32),
    points_xy=np.zeros((1, 1, 2), np.float32),
)
ROW = Row(*[0.0] * len(Row._fields))._replace(empty=1.0)
COMMAND = ["--config=configs/shapes.py", f"--checkpoint={DEMO_CHECKPOINT}"]


def test_everything_at_once(tmp_path: Path):
    """The sweep's row at the configured threshold is the plain evaluation, to the last digit."""
    arguments = [
        *COMMAND,
        f"--output={tmp_path}",
        "--sweep",
        "--coco",
        "--draw=all",
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
    assert "note: the network is the checkpoint's (built-in): model.image_height 96 (--config: 72)" in printed

    result = json.loads((tmp_path / "metrics.json").read_text())["splits"]["val"]
    assert (result["records"], result["protocol"], result["resolution"]) == (13, "strict", "original")
    (row,) = [row for row in result["sweep"] if row["score_threshold"] == 0.5]
    assert len(result["sweep"]) == 19
    assert {name: row[name] for name in SWEPT} == {name: result["by_rule"]["softmax"][name] for name in SWEPT}
    assert set(result["best_threshold"]) == set(SWEPT)

    entries = json.loads((tmp_path / "predictions_val.json").read_text())
    assert entries
    assert all(entry["score"] > 0.5 and entry["segmentation"]["size"] == [96, 96] for entry in entries)
    assert [path.name for path in sorted((tmp_path / "drawn" / "val").iterdir())] == [f"{i:06d}.jpg" for i in range(13)]
    report = (tmp_path / "report.html").read_text()
    text = html.unescape(report)
    for part in (
        label,
        "By score threshold",
        'class="mark"',
        "language only",
        "--draw=all",
        "3 to 4 words",
        "Best answers",
        "shapes, level basic: val (13 records)",
    ):
        assert part in text
    assert report.index('class="tiles"') < report.index("<figure") < report.index("<table")

    scored = [f"--predictions={tmp_path / 'predictions_val.json'}", *COMMAND[:1], *arguments[-4:]]
    evaluate.main(
        [*scored, "--config.model.image_height=96", "--config.model.image_width=96", f"--output={tmp_path / 'b'}"]
    )
    again = json.loads((tmp_path / "b" / "metrics.json").read_text())["splits"]["val"]["by_rule"]["predictions"]
    for name in ("F1", "N_acc", "T_acc"):
        assert again[name] == result["by_rule"]["softmax"][name]


def test_two_models_in_one_report(tmp_path: Path, capsys):
    """The second model is measured on the same records; without --config, the checkpoint's own data is used."""
    compared = ["--compare=built-in", "--config.data.num_eval_examples=8", "--config.eval.batch_size=8"]
    evaluate.main([COMMAND[1], *compared, f"--output={tmp_path}"])
    printed = capsys.readouterr().out
    assert f"data: shapes, level full; settings: {DEMO_CHECKPOINT / 'config.json'}" in printed
    assert printed.count("built-in: official protocol") == 2
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["compared"]["splits"]["val"]["by_rule"] == content["splits"]["val"]["by_rule"]
    report = (tmp_path / "report.html").read_text()
    assert report.count("<small>built-in</small>") == 2 * report.count("<small>ground truth</small>") > 0
    assert "<dt>Compared with</dt>" in report


def test_drawn_failures_are_the_failures(tmp_path: Path):
    shown = SimpleNamespace(picture=np.zeros((8, 8, 3), np.uint8), expression="x", boxes_xyxy=[], masks=[])
    source: Any = SimpleNamespace(show=lambda record: shown)
    nothing: Any = to_original_size(NOTHING, 0, 8, 8)
    draw = drawing.drawer(tmp_path, source, "gres", "failures")
    for record, says_none in enumerate((0.0, 1.0)):
        draw(record, nothing, ROW._replace(says_none=says_none))
    assert [path.name for path in tmp_path.iterdir()] == ["000000.jpg"]


def test_the_network_of_an_evaluation(tmp_path, monkeypatch, capsys):
    """The checkpoint's own configuration, in a run's folder below ~; another picture size; another depth, which is refused."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint").symlink_to(DEMO_CHECKPOINT)
    monkeypatch.setenv("HOME", str(tmp_path))
    small = [
        "--checkpoint",
        "~/run",
        "--config.data.num_eval_examples=8",
        "--config.eval.batch_size=8",
        "--config.model.image_height=48",
    ]
    evaluate.main([*small, "--config.model.image_width=48", "--config.model.num_queries=8"])
    printed = capsys.readouterr().out
    assert "compared at the network's 48 x 48 pixels" in printed
    with pytest.raises(
        InputError, match=r"--config\.model\.depth is 3, but the checkpoint .* has \d+; an evaluation can change"
    ):
        evaluate.main([*COMMAND, "--config.model.depth=3"])
    with pytest.raises(InputError, match=r"model\.image_height is 50.*expected a multiple"):
        evaluate.main([*COMMAND, "--config.model.image_height=50"])


def test_undefined_numbers_and_long_names_in_the_table(capsys):
    config = refcoco.get_config()
    values = {**dict.fromkeys(metric_names(config), 100.0), "REC": float("nan")}
    measured: Any = SimpleNamespace(split="val_refcoco_unc", metrics=values)
    outputs.print_table([measured])
    names, values = (line.split() for line in capsys.readouterr().out.splitlines())
    assert names == metric_names(config)
    assert values == ["val_refcoco_unc", *["100.00"] * (len(names) - 1), "-"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--coco"], "--coco writes into the directory of --output; expected that too"),
        (["--draw=all"], "--draw writes into the directory of --output; expected that too"),
        (["--draw=some", "--output=x"], "argument --draw: invalid choice: 'some'"),
        (["--compare=absent"], "absent: no such file or directory; expected a path, built-in, or one of"),
        (["--predictions=x.jsonl"], "--predictions cannot be combined with --checkpoint"),
        (["--config.eval.protocol=lenient"], "protocol is 'lenient'; expected one of official, strict"),
        (["--config.data.eval_splits=()"], "data.eval_splits is empty"),
        (["--sweep=maybe"], "sweep"),
    ],
)
def test_bad_command_lines_are_one_line(arguments, says):
    with pytest.raises(InputError, match=says) as caught:
        evaluate.main([*COMMAND, *arguments])
    assert "\n" not in str(caught.value).strip()


def test_no_model_at_all():
    with pytest.raises(InputError, match="--checkpoint is required, unless --predictions is given"):
        evaluate.main(COMMAND[:1])
    with pytest.raises(InputError, match="absent"):
        evaluate.main(["--checkpoint=absent"])


def test_help_names_the_switches(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    printed = capsys.readouterr().out
    assert "--sweep" in printed
    assert "--coco" in printed
