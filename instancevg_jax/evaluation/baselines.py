"""Scores of answers that need no model, for comparison. Only the embedded data set has them."""

from collections.abc import Callable

import numpy as np

from data_pipelines.shapes import baselines
from data_pipelines.shapes.dataset import Example, ShapesDataset
from data_pipelines.splits import ShapesSplit, Split
from instancevg_jax.config import Config
from instancevg_jax.evaluation.metrics import Answer, Metrics, Truth

LANGUAGE_EXAMPLES = 3000  # training sentences that the language-only baseline reads


def measure_baselines(config: Config, source: Split) -> dict[str, dict[str, float]]:
    """Name -> metrics in percent, over the records of `source`; {} for other data sets."""
    if not isinstance(source, ShapesSplit):
        return {}
    train = ShapesDataset(config.data.train_split, source.dataset.level, source.dataset.size)
    answers: dict[str, Callable[[Example], baselines.Answer]] = {
        "always none": baselines.always_none,
        "language only": baselines.LanguageOnly(train.load(0, LANGUAGE_EXAMPLES)),
        "colour words only": baselines.colour_only,
    }
    settings = config.eval
    metrics = {name: Metrics(settings.task, settings.score_threshold, settings.protocol) for name in answers}
    chance = []
    for record, example in enumerate(source.dataset.load(0, len(source))):
        truth = Truth(example.boxes_xyxy[list(example.referents)], example.mask, not example.referents)
        for name, answer in answers.items():
            answered = answer(example)
            scores = np.ones(len(answered.boxes_xyxy), np.float32)
            metrics[name].update(Answer(answered.boxes_xyxy, scores, answered.mask), truth, record)
        if example.kind == "single":
            chance.append(100 * baselines.chance_rec(example))
    random = {"REC": float(np.mean(chance)) if chance else float("nan")}
    return {name: measured.shown() for name, measured in metrics.items()} | {"a random object": random}
