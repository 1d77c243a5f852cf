"""Scores of answers that need no model, for comparison, where a data set has such answers."""

import numpy as np

from data_pipelines.splits import Split
from instancevg_jax.config import EvalConfig
from instancevg_jax.evaluation.metrics import Answer, Metrics, Truth


def measure_baselines(config: EvalConfig, source: Split) -> dict[str, dict[str, float]]:
    """Name -> metrics in percent, over the records of `source`; {} where it has no guesses."""
    measured: dict[str, Metrics] = {}
    chance = []
    for record in range(len(source)):
        guesses = source.guesses(record)
        if not guesses:
            return {}
        boxes, mask = source.truth(record)
        truth = Truth(boxes, mask, not len(boxes))
        for name, guess in guesses.items():
            scores = np.ones(len(guess.boxes_xyxy), np.float32)
            metrics = measured.setdefault(name, Metrics(config.task, config.score_threshold, config.protocol))
            metrics.update(Answer(guess.boxes_xyxy, scores, guess.mask), truth, record)
        if len(boxes) == 1:
            chance.append(100 / source.describe(record).num_objects)
    random = {"REC": float(np.mean(chance)) if chance else float("nan")}
    return {name: metrics.shown() for name, metrics in measured.items()} | {"a random object": random}
