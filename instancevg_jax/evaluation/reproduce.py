"""The official checkpoints on the official splits, measured next to the published scores."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from instancevg_jax import checkpoint
from instancevg_jax.answers.predictor import checkpoint_directory
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.evaluation.evaluator import Evaluation, Evaluator, open_eval_split
from instancevg_jax.evaluation.metrics import TASKS
from instancevg_jax.evaluation.page import Cell, Table, write_page
from instancevg_jax.evaluation.report import MEANINGS
from instancevg_jax.files import write_atomically
from instancevg_jax.runtime import command_line


class Official(NamedTuple):
    """A checkpoint that the authors of InstanceVG publish."""

    file: str  # somewhere at huggingface.co/Dmmm997/InstanceVG
    config: str  # the name of its config


OFFICIAL = {
    "refcoco-base": Official("InstanceVG-B-refcoco.pth", "refcoco"),
    "refcoco-large": Official("InstanceVG-L-refcoco.pth", "refcoco:large"),
    "grefcoco": Official("InstanceVG-grefcoco.pth", "grefcoco"),
    "refzom": Official("InstanceVG-refzom.pth", "refzom"),
    "rrefcoco": Official("InstanceVG-rrefcoco.pth", "rrefcoco"),
}
TOKENIZER = "beit3.spm"
FIGURE_KEYS = ("checkpoint", "task", "split", "metric", "value", "source")


class PublishedScore(NamedTuple):
    """A published score in percent."""

    checkpoint: str  # a key of OFFICIAL
    task: str
    split: str
    metric: str
    value: float
    source: str


class Comparison(NamedTuple):
    """A measured score, next to the published one if that is known."""

    checkpoint: str
    split: str
    metric: str
    measured: float | None  # None: nothing to measure
    published: float | None
    source: str

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        if self.measured is None or self.published is None:
            return None
        return self.measured - self.published


def load_figures(path: Path) -> list[PublishedScore]:
    """The figures of a published.json. Raises InputError for one that is incomplete or of an unknown checkpoint."""
    try:
        entries = json.loads(path.read_text("utf-8"))["figures"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: expected JSON with a list of "figures" ({first_line(error)})') from error
    figures = []
    for i, entry in enumerate(entries):
        if set(entry) != set(FIGURE_KEYS) or entry["checkpoint"] not in OFFICIAL or entry["task"] not in TASKS:
            raise InputError(f"{path}: figure {i} is {entry}; expected {', '.join(FIGURE_KEYS)} with known names")
        figures.append(PublishedScore(**entry))
    return figures


def find_checkpoint(weights: Path, name: str) -> Path:
    """The directory of an official checkpoint in `weights`, which holds it as a directory or as the official file.

    A directory is called like the checkpoint or the official file. The file may be in any folder; it is converted once, into the
    cache. Raises InputError if neither is there.
    """
    file, config = OFFICIAL[name]
    for directory in (weights / name, weights / Path(file).stem):
        if directory.is_dir():
            return checkpoint.find_checkpoint(directory)
    path = next(iter(sorted(weights.rglob(file))), None)
    if path is None:
        raise InputError(
            f"no {weights / name} and no {file} in {weights}; download it from https://huggingface.co/Dmmm997/InstanceVG"
        )
    tokenizer = weights / TOKENIZER
    return checkpoint_directory(
        path, tokenizer=tokenizer if tokenizer.is_file() else None, config=command_line.load_config(config)
    )


def measure_splits(
    name: str, directory: Path, data: Path, mesh: jax.sharding.Mesh, batch_size: int, missing: list[str]
) -> Iterator[tuple[Config, Evaluation]]:
    """Evaluate a checkpoint under the official protocol on each of its splits that is there; the others go into `missing`."""
    model, stored = checkpoint.load_model(directory)
    family = command_line.load_config(OFFICIAL[name].config).data.name
    if stored.data.name != family:
        raise InputError(f"{directory}: the configuration is for {stored.data.name!r} data; expected {family!r}")
    settings = dataclasses.replace(stored.eval, protocol="official", resolution="network", batch_size=batch_size)
    records = dataclasses.replace(stored.data, data_dir=str(data), num_eval_examples=0)
    config = dataclasses.replace(stored, eval=settings, data=records)
    tokenizer = checkpoint.load_tokenizer(directory)
    evaluator = Evaluator(model, config, mesh)
    for split in config.data.eval_splits:
        try:
            source = open_eval_split(config, split, tokenizer)
        except InputError as error:
            missing.append(f"{name}, {split}: {error}")
            continue
        yield config, evaluator(model, split, source, verbose=True)


def compare(name: str, evaluation: Evaluation, task: str, figures: Sequence[PublishedScore]) -> list[Comparison]:
    """The task's main metrics of a split, and every metric that a figure is published of."""
    known = {f.metric: f for f in figures if (f.checkpoint, f.split) == (name, evaluation.split)}
    metrics = evaluation.metrics
    return [
        Comparison(
            name,
            evaluation.split,
            metric,
            None if np.isnan(metrics.get(metric, np.nan)) else metrics[metric],
            known[metric].value if metric in known else None,
            known[metric].source if metric in known else "",
        )
        for metric in dict.fromkeys((*TASKS[task].tiles, *known))
    ]


def write(output: Path, lines: Sequence[Comparison], missing: Sequence[str], facts: dict[str, str]) -> None:
    """OUTPUT/reproduce.json and OUTPUT/reproduce.html."""
    rows: list[dict[str, Any]] = [{**line._asdict(), "difference": line.difference} for line in lines]
    content = {"facts": facts, "results": rows, "missing": list(missing)}
    write_atomically(output / "reproduce.json", (json.dumps(content, indent=2) + "\n").encode())
    header = ["checkpoint", "split", "metric", "measured", "published", "difference", "source"]
    cells: list[list[Cell]] = [
        [*line[:3], *map(_cell, (line.measured, line.published, line.difference)), line.source] for line in lines
    ]
    sections = [
        Table("Measured and published", header, cells, "Percent. A dash: not published here, or nothing to measure.")
    ]
    if missing:
        sections.append(Table("Missing", ["what", "why"], [[*map(str.strip, m.split(":", 1))] for m in missing]))
    write_page(output / "reproduce.html", "Official checkpoints", sections, facts=facts, meanings=MEANINGS)


def _cell(value: float | None) -> Cell:
    return None if value is None else f"{value:.2f}"
