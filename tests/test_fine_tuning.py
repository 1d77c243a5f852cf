"""docs/training.md, "Fine-tuning step by step", with the tiny network and weights made by the recipe."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from flax import nnx

from benchmarks.convert import make_tokenizer
from convert.torch_file import writer
from instancevg_jax import config as configs
from instancevg_jax import evaluate, train
from instancevg_jax.checkpoint import load_model, load_pretrained
from instancevg_jax.config import Config
from instancevg_jax.models.instancevg import InstanceVG
from tests import oracle

STEPS = 4


def module(*words: str | Path, status: int = 0) -> str:
    """Run a command as a user does; returns what it printed."""
    command = [sys.executable, "-m", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == status, result.stderr
    return result.stdout


def drawn_pictures(folder: Path) -> tuple[Path, Path]:
    """A JSONL file about twelve pictures, each of a coloured rectangle, and where they are; every third sentence means nothing."""
    rng, lines = np.random.default_rng(0), []
    for number in range(12):
        picture = rng.integers(90, 160, (80, 100, 3), np.uint8)
        x, y = (int(v) for v in rng.integers(5, 40, 2))
        picture[y : y + 30, x : x + 40] = (30, 30, 220)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
        mask = [[x, y, x + 40, y, x + 40, y + 30, x, y + 30]]
        thing = {"box": [x, y, x + 40, y + 30], "mask": mask}
        there = number % 3 != 2
        sentence = "the red thing" if there else "the green thing"
        record = {"image": f"{number}.png", "split": "train" if number < 8 else "val", "expressions": [sentence]}
        lines.append(json.dumps({**record, "objects": [thing] if there else []}))
    path = folder / "my.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path, folder


def real_pictures(folder: Path) -> tuple[Path, Path]:
    """gRefCOCO's sentences of the real sample as anyone's own JSONL, of each third picture for validation; and the pictures."""
    root = oracle.data("refcoco_real")
    images = root / "images" / "mscoco" / "train2014"
    source = ["--annotations", root / "annotations" / "grefs" / "instance.json", "--images", images]
    cleaned = folder / "cleaned.jsonl"
    module("data_pipelines.check", "grefcoco", *source, "--fix", cleaned, status=1)  # pictures are in several splits
    records = [json.loads(line) for line in cleaned.read_text().splitlines()]
    pictures = sorted({record["image"] for record in records})
    for record in records:
        record["split"] = "train" if pictures.index(record["image"]) % 3 else "val"
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path, images


def overrides(config: Config, data: Path, tokenizer: Path) -> Sequence[str]:
    """configs/grefcoco.py at the tiny network's sizes, on our own data."""
    sizes, official = dataclasses.asdict(config.model), dataclasses.asdict(configs.base())
    return [
        "--config=configs/grefcoco.py",
        *(f"--config.model.{name}={value}" for name, value in sizes.items() if value != official[name]),
        "--config.data.name=custom",
        f"--config.data.data_dir={data}",
        f"--config.data.tokenizer={tokenizer}",
        "--config.data.eval_splits=('val',)",
        "--config.eval.batch_size=4",
    ]


@pytest.mark.parametrize("start", [pytest.param("beit3", marks=pytest.mark.slow), "instancevg"])
@pytest.mark.parametrize("pictures", [drawn_pictures, pytest.param(real_pictures, marks=pytest.mark.slow)])
def test_the_walk_through(tmp_path, start, pictures):
    tokenizer = tmp_path / "tiny.spm"
    make_tokenizer(tokenizer, 256, oracle.path("fixtures/tiny_beit3.spm"))
    annotations, images = pictures(tmp_path)
    source = ["custom", "--annotations", annotations, "--images", images]
    module("data_pipelines.check", *source, "--tokenizer", tokenizer)
    module("data_pipelines.prepare", *source, "--data-dir", tmp_path / "prepared")

    records = [json.loads(line) for line in annotations.read_text().splitlines()]
    config = Config(model=configs.tiny())
    (tmp_path / "tiny.json").write_text(configs.to_json(config))
    state = oracle.state("tiny")
    if start == "beit3":
        state = {k.removeprefix("vis_enc."): v for k, v in state.items() if k.startswith("vis_enc.beit3.")}
    wrapper = "model" if start == "beit3" else "state_dict"
    writer.write_checkpoint(tmp_path / "weights.pth", state, wrapper)
    weights = tmp_path / "weights"
    module(
        "convert",
        start,
        tmp_path / "weights.pth",
        weights,
        "--config",
        tmp_path / "tiny.json",
        "--tokenizer",
        tokenizer,
    )

    arguments = overrides(config, tmp_path / "prepared", tokenizer)
    run = tmp_path / "run"
    train.main(
        [
            *arguments,
            f"--workdir={run}",
            f"--config.model.pretrained={weights}",
            "--config.optim.learning_rate=5e-5",
            f"--config.train.num_steps={STEPS}",
            "--config.train.eval_every=2",
            "--config.train.batch_size=4",
        ]
    )
    model, _ = load_model(run / "best")
    fresh = InstanceVG(config.model, rngs=nnx.Rngs(0))
    load_pretrained(fresh, weights)
    before, after = (m.backbone.text_embed.embedding[...] for m in (fresh, model))
    moved = float(np.abs(after - before).max())
    assert 0 < moved < 1e-3  # it started from the weights, and learned

    evaluate.main([*arguments, f"--checkpoint={run / 'best'}", f"--output={run / 'report'}"])
    assert json.loads((run / "report" / "metrics.json").read_text())["splits"]["val"]["records"] == sum(
        len(record["expressions"]) for record in records if record["split"] == "val"
    )
    picture, expression = images / records[0]["image"], records[0]["expressions"][0]
    asked = ["--image", picture, "--expression", expression, "--output", tmp_path / "answer.png"]
    module("instancevg_jax.predict", "--checkpoint", run / "best", *asked)
    assert (tmp_path / "answer.png").stat().st_size > 1000
