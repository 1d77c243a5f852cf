"""The whole path through the commands, with a network so small that compiling is most of the work."""

import json
import subprocess
import sys

import pytest
from flax import nnx

from convert import __main__ as convert
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax import evaluate, predict, train
from instancevg_jax.checkpoint import load_model
from instancevg_jax.errors import InputError
from instancevg_jax.runtime import trees

SMALL = [
    "--config=configs/shapes.py",
    "--config.model.image_height=32",
    "--config.model.image_width=32",
    "--config.model.patch_size=8",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.mlp_dim=32",
    "--config.model.head_width=16",
    "--config.model.decoder_layers=1",
    "--config.model.decoder_heads=2",
    "--config.model.decoder_mlp_dim=16",
    "--config.model.query_mlp_dim=16",
    "--config.optim.name=adamw",
    "--config.data.num_eval_examples=13",
    "--config.eval.batch_size=8",
    "--config.train.batch_size=4",
]


def exported_and_back_is_exact(checkpoint, tmp_path, monkeypatch):
    """What was trained here goes to the original's layout and comes back, bit for bit."""
    converted, source = tmp_path / "converted", tmp_path / "trained.pth"
    options = ["--config", str(checkpoint / "config.json"), "--tokenizer", str(TOKENIZER_PATH)]
    for words in (["export", str(checkpoint), str(source)], ["instancevg", str(source), str(converted), *options]):
        monkeypatch.setattr(sys, "argv", ["convert", *words])
        convert.main()
    ours, theirs = (trees.flatten(nnx.state(load_model(path)[0])) for path in (checkpoint, converted))
    assert ours.keys() == theirs.keys()
    assert all((ours[path][...] == theirs[path][...]).all() for path in ours)


def test_train_resume_evaluate_predict(tmp_path, capsys, monkeypatch):
    """Six steps at once and four, stopped, and two more leave the same parameters; the result can be measured and asked."""
    steps = ["--config.train.log_every=2", "--config.train.checkpoint_every=2", "--config.optim.warmup_steps=2"]
    cosine = [*SMALL, *steps, "--config.optim.schedule=step"]
    train.main([*cosine, "--config.train.num_steps=6", f"--workdir={tmp_path / 'whole'}"])
    train.main([*cosine, "--config.train.num_steps=4", f"--workdir={tmp_path / 'parts'}"])
    train.main([*cosine, "--config.train.num_steps=6", f"--workdir={tmp_path / 'parts'}"])
    printed = capsys.readouterr().out
    assert "resuming from step 4" in printed
    assert "examples/s" in printed
    assert "left" in printed
    whole, parts = (load_model(tmp_path / name / "checkpoint")[0] for name in ("whole", "parts"))
    assert (whole.class_head.kernel[...] == parts.class_head.kernel[...]).all()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    assert lines[-1]["group"] == "val"
    assert "gIoU" in lines[-1]

    checkpoint, output = tmp_path / "whole" / "checkpoint", tmp_path / "report"
    evaluate.main([*SMALL, f"--checkpoint={checkpoint}", f"--output={output}"])
    result = json.loads((output / "metrics.json").read_text())["splits"]["val"]
    assert result["records"] == 13
    assert result["by_rule"]["softmax"]["gIoU"] == pytest.approx(lines[-1]["gIoU"])
    report = (output / "report.html").read_text()
    assert "always none" in report
    assert "language only" in report

    exported_and_back_is_exact(checkpoint, tmp_path, monkeypatch)

    command = [sys.executable, "-m", "data_pipelines.draw_shapes", "--output", str(tmp_path / "scene.png")]
    sentence = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    arguments = ["--checkpoint", str(checkpoint), "--image", str(tmp_path / "scene.png")]
    predict.main([*arguments, "--expression", sentence, "--output", str(tmp_path / "answer.png")])
    assert (tmp_path / "answer.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workdir=x"], "--config is required"),
        (["--config=configs/shapes.py"], "--workdir is required"),
        (["--config=configs/nothing.py", "--workdir=x"], "configs/nothing.py"),
        (["--config=configs/shapes.py:huge", "--workdir=x"], "no variant 'huge'"),
        (["--config=configs/shapes.py", "--workdir=x", "--config.train.steps=3"], r"train\.steps: no such field"),
        (["--config=configs/shapes.py", "--workdir=x", "--config.train.num_steps=many"], "num_steps"),
        (["--config=configs/shapes.py", "--workdir=x", "--workdri=y"], "workdri"),
        (["--config=configs/shapes.py", "--workdir=x", "--config.data.name=shape"], "'shape'"),
        (["--config=configs/shapes.py", "--workdir=x", "--config.model.vocab_size=9"], "model.vocab_size is 9"),
        (["--config=configs/shapes.py", "--workdir=x", "--config.optim.schedule=linear"], "optim.schedule is 'linear'"),
    ],
)
def test_bad_command_lines_are_one_line(arguments, says, tmp_path):
    arguments = [a.replace("--workdir=x", f"--workdir={tmp_path / 'x'}") for a in arguments]
    with pytest.raises(InputError, match=says) as caught:
        train.main(arguments)
    assert "\n" not in str(caught.value).strip()


def test_exit_status_of_the_command(tmp_path):
    command = [sys.executable, "-m", "instancevg_jax.train", "--config=configs/shapes.py", f"--workdir={tmp_path}/x"]
    result = subprocess.run([*command, "--config.train.bogus=1"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
