"""Measure a model on a split: every record once, on however many devices and processes there are."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data_pipelines import loader, splits
from instancevg_jax import sharding
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.metrics import Metrics, Row, answers, truths
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.postprocess import postprocess
from instancevg_jax.run_log import duration
from instancevg_jax.tokenizer import Tokenizer
from instancevg_jax.types import Predictions

RULES = ("sigmoid", "softmax")  # how "nothing is meant" is read off; both are measured


@dataclass(frozen=True)
class Evaluation:
    """One split measured. `metrics` and `rows` are under the config's decision rule, `by_rule` under each."""

    split: str
    metrics: dict[str, float]  # percent
    rows: dict[int, Row]  # record -> its numbers
    by_rule: dict[str, dict[str, float]]
    seconds: float


def evaluate(
    model: InstanceVG, config: Config, tokenizer: Tokenizer, split: str, *, verbose: bool = False
) -> Evaluation:
    """Measure `model` on every record of `split`, each once, on however many devices and processes there are."""
    mesh = sharding.make_mesh()
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    graph, state = nnx.split(model)
    state = jax.device_put(state, sharding.replicated(mesh))
    predict = _prediction_fn(graph, config, mesh)
    source = splits.open_split(config, split, tokenizer, length=config.data.num_eval_examples)
    if len(source) == splits.ENDLESS:
        raise InputError(f"split {split!r} of {config.data.name!r} has no end: set data.num_eval_examples")
    shard, shards = jax.process_index(), jax.process_count()
    batch_size = config.eval.batch_size // shards
    batches = loader.batches(
        source,
        source.transform,
        batch_size,
        seed=0,
        shuffle=False,
        num_epochs=1,
        num_workers=config.data.num_workers,
        shard_index=shard,
        shard_count=shards,
        stack=source.stack,
    )
    metrics = {rule: Metrics(config.eval.task, config.eval.score_threshold) for rule in RULES}
    start = told = time.monotonic()
    for number, batch in enumerate(batches):
        predictions = predict(state, sharding.shard_batch(batch, mesh))
        right = truths(batch.targets)
        for rule in RULES:
            for row, answer in enumerate(answers(_local(predictions[rule]))):
                record = (number * batch_size + row) * shards + shard
                if batch.example_weight[row]:
                    metrics[rule].update(answer, right[row], record, source.group(record))
        if verbose and time.monotonic() - told > 10:
            told = time.monotonic()
            done = (number + 1) * config.eval.batch_size
            left = (told - start) / done * max(len(source) - done, 0)
            print(f"{split}: {done}/{len(source)}, {done / (told - start):.0f} records/s, {duration(left)} left")
    merged = {rule: _gathered(metrics[rule]) for rule in RULES}
    by_rule = {rule: {**merged[rule].result(), **_referring_accuracy(merged[rule].rows)} for rule in RULES}
    rule = config.eval.no_target_rule
    return Evaluation(split, by_rule[rule], merged[rule].rows, by_rule, time.monotonic() - start)


def _prediction_fn(graph: Any, config: Config, mesh: jax.sharding.Mesh):
    """(state, batch) -> Predictions under each rule, jitted, without each query's own mask."""

    def predict(state, batch) -> dict[str, Predictions]:
        outputs = nnx.merge(graph, state)(batch.images, batch.token_ids, batch.token_mask)
        settings = {rule: dataclasses.replace(config.eval, no_target_rule=rule) for rule in RULES}
        return {rule: dataclasses.replace(postprocess(outputs, settings[rule]), masks=None) for rule in RULES}

    return jax.jit(predict, in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)))


def _local(predictions: Predictions) -> Predictions:
    """This process's rows of a global batch, on the host."""

    def rows(x: jax.Array) -> np.ndarray:
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(rows, predictions)


def _gathered(metrics: Metrics) -> Metrics:
    """The rows of all processes. Every process gets as many rows to send as the busiest one has."""
    if jax.process_count() == 1:
        return metrics
    rows = metrics.to_array()
    most = int(np.max(multihost_utils.process_allgather(np.array(len(rows)))))
    padded = np.full((most, rows.shape[1]), -1.0)
    padded[: len(rows)] = rows
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, rows.shape[1])
    return Metrics.from_array(everything, metrics.task, metrics.score_threshold, metrics.protocol)


def _referring_accuracy(rows: dict[int, Row]) -> dict[str, float]:
    """REC: the best scored box is right (IoU >= 0.5), over the records that mean exactly one object."""
    hits = [row["best_box_iou"] >= 0.5 for row in rows.values() if row["num_targets"] == 1]
    return {"REC": 100.0 * float(np.mean(hits)) if hits else float("nan")}


def summary(metrics: dict[str, float]) -> str:
    """The metrics on one line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if not np.isnan(value))
