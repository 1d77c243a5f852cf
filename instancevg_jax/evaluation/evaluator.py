"""Measure a model on a split: every record once, on however many devices and processes there are."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from data_pipelines import loader, splits
from instancevg_jax.answers.postprocess import postprocess, thresholds_passed, to_original_size
from instancevg_jax.config import Config, check
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import coco
from instancevg_jax.evaluation.metrics import COLUMNS, Metrics, Row, Truth, answers, resized, truths
from instancevg_jax.evaluation.sweep import Sweep, thresholds_around
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.console import duration, say, two_digits
from instancevg_jax.types import Batch, Predictions

RULES = ("sigmoid", "softmax")  # how "nothing is meant" is read off; both are measured
HEADLINES = {"gres": "gIoU", "refcoco": "mIoU", "refzom": "mIoU", "rrefcoco": "rIoU"}  # task -> the metric to choose by


@dataclass(frozen=True)
class Evaluation:
    """One split measured. All but `by_rule` is under the config's decision rule."""

    split: str
    metrics: dict[str, float]  # percent
    rows: dict[int, Row]  # record -> its numbers
    by_rule: dict[str, dict[str, float]]
    seconds: float
    sweep: dict[float, dict[str, float]]  # score threshold -> metrics of threshold_sweep.SWEPT; empty if not asked for
    coco_entries: list[dict[str, Any]]  # see coco.entries; empty if not asked for


class Evaluator:
    """Measures models of one architecture on splits; compiled once, whatever the number of splits and of parameters tried."""

    def __init__(
        self, model: InstanceVG, config: Config, tokenizer: Tokenizer, *, sweep: bool = False, coco: bool = False
    ) -> None:
        """Prepare to measure.

        Args:
            model: a network of the architecture.
            config: its `eval` section says what is compared, and how.
            tokenizer: of the model.
            sweep: measure at other score thresholds too.
            coco: collect the answers as COCO results.

        Raises:
            InputError: a setting that does not exist, or a batch size that the devices do not divide.
        """
        check(config)
        self._mesh = sharding.make_mesh()
        sharding.check_batch_size(config.eval.batch_size, self._mesh, "eval.batch_size")
        self._config, self._tokenizer, self._coco = config, tokenizer, coco
        self._thresholds = thresholds_around(config.eval.score_threshold) if sweep else ()
        self._predict = _prediction_fn(nnx.graphdef(model), config, self._mesh, self._thresholds, coco)
        self._compiled: Any = None  # the same, compiled

    def __call__(
        self, model: InstanceVG, split: str, *, verbose: bool = False, after_batch: Callable[[], None] = lambda: None
    ) -> Evaluation:
        """Measure `model` on every record of `split`, each once, on however many devices and processes there are.

        With `verbose`, print how far it is, now and then. `after_batch` is called after each batch and may raise. Raises
        InputError for a split that does not exist or has no end, and for a training split of real data, of whose sentences
        one is drawn, where the picture's own pixels are asked for.
        """
        config = self._config
        source = open_measured(config, split, self._tokenizer, self._coco)
        measures = _Measures(config, source, self._thresholds, self._coco)
        state = jax.device_put(nnx.state(model), sharding.replicated(self._mesh))
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
        start = told = time.monotonic()
        for number, batch in enumerate(batches):
            placed = sharding.shard_batch(batch, self._mesh)
            answered = _local(self._compiled_for(state, placed)(state, placed))
            records = (number * batch_size + np.arange(batch_size)) * shards + shard
            measures.update(answered, batch, records)
            after_batch()
            if verbose and time.monotonic() - told > 10:
                told = time.monotonic()
                done = (number + 1) * config.eval.batch_size
                left = (told - start) / done * max(len(source) - done, 0)
                rate = done / (told - start)
                say(f"{split}: {done}/{len(source)}, {two_digits(rate)} records/s, {duration(left)} left")
        return measures.result(split, time.monotonic() - start)

    def _compiled_for(self, state: nnx.State, batch: Batch) -> Any:
        """`_predict`, ready on all processes."""
        if self._compiled is None:
            self._compiled = self._predict.lower(state, batch).compile()
            sharding.wait_for_all("the evaluation is compiled")
        return self._compiled


def open_measured(config: Config, split: str, tokenizer: Tokenizer, coco: bool = False) -> splits.Split:
    """The split with `data.num_eval_examples` of its records. Raises InputError as `Evaluator.__call__` does."""
    source = splits.open_split(config, split, tokenizer, length=config.data.num_eval_examples)
    if len(source) == splits.ENDLESS:
        raise InputError(f"split {split!r} of {config.data.name!r} has no end: set data.num_eval_examples")
    if source.drawn and (coco or config.eval.resolution == "original"):
        raise InputError(
            f"data.eval_splits has {split!r}, of whose sentences one is drawn; COCO results and eval.resolution "
            "'original' need a split whose name does not start with 'train'"
        )
    return source


@dataclass(frozen=True)
class _Answered:
    """What the device says of a batch."""

    predictions: dict[str, Predictions]  # by rule; with each query's own mask where COCO results are wanted
    passed: Any  # `thresholds_passed` [B, H, W] where a sweep is wanted, else None


jax.tree_util.register_dataclass(_Answered)


class _Measures:
    """Everything that is collected from this process's records of a split."""

    def __init__(self, config: Config, source: splits.Split, thresholds: Sequence[float], coco: bool):
        settings = config.eval
        self.config, self.source, self.coco = config, source, coco
        self.metrics = {rule: Metrics(settings.task, settings.score_threshold, settings.protocol) for rule in RULES}
        self.sweep = Sweep(thresholds, settings.protocol) if thresholds else None
        self.coco_entries: list[dict[str, Any]] = []

    def update(self, answered: _Answered, batch: Batch, records: np.ndarray) -> None:
        """Measure the records of a batch, but not those that only fill it up."""
        said = {rule: answers(predictions) for rule, predictions in answered.predictions.items()}
        right = truths(batch.targets)
        for row in map(int, np.flatnonzero(batch.example_weight)):
            record = int(records[row])
            truth = self._truth(right[row], record)
            here = {rule: resized(answer[row], *truth.mask.shape) for rule, answer in said.items()}
            for rule in RULES:
                self.metrics[rule].update(here[rule], truth, record, self.source.group(record))
            if self.sweep:
                answer = here[self.config.eval.no_target_rule]
                self.sweep.update(answer, answered.passed[row], truth, record)
            if self.coco:
                self._add_coco(answered.predictions[self.config.eval.no_target_rule], row, record)

    def _truth(self, truth: Truth, record: int) -> Truth:
        """At the size at which is compared; `truth` is the target, at the network's."""
        if self.config.eval.resolution == "network":
            return truth
        boxes, mask = self.source.truth(record)
        return Truth(boxes, mask, truth.empty)

    def _add_coco(self, predictions: Predictions, row: int, record: int) -> None:
        about = self.source.describe(record)
        one_object = self.config.eval.task == "refcoco"
        grounding = to_original_size(predictions, row, about.height, about.width, one_object)
        self.coco_entries += coco.entries(grounding, about, record)

    def result(self, split: str, seconds: float) -> Evaluation:
        """The summary of all processes' records."""
        merged = {rule: _gathered(metrics) for rule, metrics in self.metrics.items()}
        by_rule = {rule: {**m.result(), **_referring_accuracy(m.rows)} for rule, m in merged.items()}
        lines = "".join(json.dumps(entry) + "\n" for entry in self.coco_entries)
        everyones = [json.loads(line) for part in _of_all(lines.encode()) for line in part.splitlines()]
        rule = self.config.eval.no_target_rule
        return Evaluation(
            split,
            by_rule[rule],
            merged[rule].rows,
            by_rule,
            seconds,
            _gathered_sweep(self.sweep).result() if self.sweep else {},
            sorted(everyones, key=lambda entry: entry["record"]),
        )


def _prediction_fn(
    graph: Any, config: Config, mesh: jax.sharding.Mesh, thresholds: tuple[float, ...], coco: bool
) -> Any:
    """(nnx.State, Batch) -> _Answered: what the device does with a batch, jitted. `thresholds` of a sweep, or none."""
    protocol, own_rule = config.eval.protocol, config.eval.no_target_rule

    def predict(state: nnx.State, batch: Batch) -> _Answered:
        outputs = nnx.merge(graph, state)(batch.images, batch.token_ids, batch.token_mask)
        predictions = {}
        for rule in RULES:
            answer = postprocess(outputs, dataclasses.replace(config.eval, no_target_rule=rule), protocol)
            wanted = coco and rule == own_rule
            predictions[rule] = answer if wanted else dataclasses.replace(answer, masks=None)
        passed = thresholds_passed(outputs, config.eval, thresholds, protocol) if thresholds else None
        return _Answered(predictions, passed)

    return jax.jit(predict, in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh)))


def _local(answered: _Answered) -> _Answered:
    """This process's rows of a global batch, on the host."""

    def rows(x: jax.Array) -> np.ndarray:
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(rows, answered)


def _gathered(metrics: Metrics) -> Metrics:
    """The rows of all processes."""
    rows = np.frombuffer(b"".join(_of_all(metrics.to_array().tobytes())), np.float64).reshape(-1, len(COLUMNS))
    return Metrics.from_array(rows, metrics.task, metrics.score_threshold, metrics.protocol)


def _gathered_sweep(sweep: Sweep) -> Sweep:
    """The same for a sweep."""
    rows = np.frombuffer(b"".join(_of_all(sweep.to_array().tobytes())), np.float64)
    rows = rows.reshape(-1, len(sweep.thresholds), len(COLUMNS))
    return Sweep.from_array(rows, sweep.thresholds, sweep.protocol)


def _of_all(data: bytes) -> list[bytes]:
    """What each process gives, in order. As bytes, because JAX would round float64 to float32 on the way."""
    if jax.process_count() == 1:
        return [data]
    lengths = np.ravel(multihost_utils.process_allgather(np.array(len(data))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(everything, lengths, strict=True)]


def _referring_accuracy(rows: dict[int, Row]) -> dict[str, float]:
    """REC: the best scored box is right (IoU >= 0.5), over the records that mean exactly one object."""
    hits = [row["best_box_iou"] >= 0.5 for row in rows.values() if row["num_targets"] == 1]
    return {"REC": 100.0 * float(np.mean(hits)) if hits else float("nan")}


def metric_names(config: Config) -> list[str]:
    """What a split is measured by."""
    nothing = Metrics(config.eval.task, config.eval.score_threshold, config.eval.protocol)
    return [*nothing.result(), *_referring_accuracy({})]


def summary(metrics: dict[str, float]) -> str:
    """The metrics on one line."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if not np.isnan(value))


def conditions(config: Config, with_threshold: bool = True) -> str:
    """What the numbers were measured under, on one line."""
    settings = config.eval
    size = f"{config.model.image_height} x {config.model.image_width}"
    compared = f"the network's {size} pixels" if settings.resolution == "network" else "each picture's own pixels"
    line = f"{settings.protocol} protocol, compared at {compared}, {settings.no_target_rule} rule"
    return f"{line}, score threshold {settings.score_threshold:g}" if with_threshold else line
