"""Measure a model on a split: each record once, on any number of devices and processes."""

import dataclasses
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from tqdm import tqdm

from data_pipelines import loader, splits
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.postprocess import postprocess, resize_levels, thresholds_passed, to_original_size
from instancevg_jax.config import Config, EvalConfig, check
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.metrics import TASKS, Metrics, Row, Truth, answers, resized, truths
from instancevg_jax.evaluation.sweep import Sweep, thresholds_around
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.types import Array, Batch, Predictions

T = TypeVar("T")
RULES = ("sigmoid", "softmax")  # the values of eval.no_target_rule; both are measured


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One measured split."""

    split: str
    rule: str  # the config's eval.no_target_rule: `metrics`, `rows` and `sweep` follow it
    by_rule: dict[str, Metrics]
    seconds: float
    sweep: dict[float, dict[str, float]]  # score threshold -> the metrics of sweep.SWEPT; empty without a sweep

    @property
    def measured(self) -> Metrics:
        """Rows and summary under the config's rule."""
        return self.by_rule[self.rule]

    @property
    def rows(self) -> dict[int, Row]:
        """Record -> its numbers."""
        return self.measured.rows

    @property
    def metrics(self) -> dict[str, float]:
        """In percent; NaN for a metric with nothing to measure, even where the official protocol states 0."""
        return self.measured.shown()


class Evaluator:
    """Measures models of one architecture on splits. It compiles once, for any number of splits and of models."""

    def __init__(self, model: InstanceVG, config: Config, mesh: jax.sharding.Mesh, *, sweep: bool = False) -> None:
        """Prepare to measure.

        Args:
            model: a network of the architecture.
            config: its `eval` section defines what is compared, and how.
            mesh: the devices, as `sharding.make_mesh` gives them.
            sweep: measure at other score thresholds too.

        Raises:
            InputError: an invalid setting, or a batch size that the devices do not divide.
        """
        check(config)
        sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
        self._mesh, self._config = mesh, config
        self._thresholds = thresholds_around(config.eval.score_threshold) if sweep else ()
        self._graph = nnx.graphdef(model)
        self._compiled: dict[bool, Any] = {}  # with or without each query's mask -> the compiled function

    def __call__(
        self,
        model: InstanceVG,
        split: str,
        source: splits.Split,
        *,
        verbose: bool = False,
        after_batch: Callable[[], None] = lambda: None,
        on_answer: Callable[[int, Grounding, Row], None] | None = None,
    ) -> Evaluation:
        """Measure `model` on every record of a split.

        Args:
            model: a network of the architecture that this was made for.
            split: the name of the split.
            source: the split, as `open_eval_split` gives it.
            verbose: show the progress, on the first process.
            after_batch: called after each batch; may raise to end the evaluation.
            on_answer: called for each record of this process with its number, its answer in the picture's own pixels under
                the config's protocol and rule, and its row.
        """
        config = self._config
        measures = _Measures(config, source, self._thresholds, on_answer)
        state = jax.device_put(nnx.state(model), sharding.replicated(self._mesh))
        settings = np.float32(config.eval.score_threshold), np.array(self._thresholds, np.float32)
        shard, shards = jax.process_index(), jax.process_count()
        batch_size = config.eval.batch_size // shards
        quiet = not (verbose and sharding.is_first_process())
        progress = tqdm(total=len(source), desc=split, unit=" records", mininterval=1.0, disable=quiet)
        start = time.monotonic()
        waiting: tuple[_DeviceAnswers, Batch, np.ndarray] | None = None
        for number, batch in enumerate(_batches(source, config, batch_size, shard, shards)):
            placed = sharding.shard_batch(batch, self._mesh)
            predict = self._compiled_for(on_answer is not None, state, placed, settings)
            answered = predict(state, placed, *settings)
            if waiting:  # measured on the host while the devices compute the next batch
                measures.update(*waiting)
            records = (number * batch_size + np.arange(batch_size)) * shards + shard
            waiting = answered, batch, records
            after_batch()
            progress.update(min(config.eval.batch_size, len(source) - progress.n))
        if waiting:
            measures.update(*waiting)
        progress.close()
        return measures.result(split, time.monotonic() - start)

    def _compiled_for(self, with_masks: bool, state: nnx.State, batch: Batch, settings: tuple[Any, Any]) -> Any:
        """The prediction function, compiled on all processes."""
        if with_masks not in self._compiled:
            predict = _prediction_fn(self._graph, self._config.eval, self._mesh, with_masks)
            self._compiled[with_masks] = predict.lower(state, batch, *settings).compile()
            sharding.wait_for_all("the evaluation is compiled")
        return self._compiled[with_masks]


def open_eval_split(config: Config, split: str, tokenizer: Tokenizer, *, sentences: bool = False) -> splits.Split:
    """The first `data.num_eval_examples` records of a split, or all of them.

    Args:
        config: its `data` and `eval` sections.
        split: the name of the split.
        tokenizer: of the model.
        sentences: the caller needs to know each record's sentence.

    Raises:
        InputError: a split that does not exist or is infinite; a training split, where a sentence is drawn per record, if
            `sentences` or comparison in the picture's own pixels is asked for.
    """
    source = splits.open_split(config, split, tokenizer, length=config.data.num_eval_examples)
    if len(source) == splits.ENDLESS:
        raise InputError(f"split {split!r} of {config.data.name!r} is infinite; expected data.num_eval_examples")
    if source.drawn and (sentences or config.eval.resolution == "original"):
        raise InputError(
            f"data.eval_splits contains {split!r}, a training split, whose sentences are drawn at random; COCO results, "
            "--draw, --predictions and eval.resolution 'original' need another split"
        )
    return source


def _batches(source: splits.Split, config: Config, batch_size: int, shard: int, shards: int) -> Any:
    return loader.batches(
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


@dataclass(frozen=True)
class _DeviceAnswers:
    """The results of the devices for a batch."""

    predictions: dict[str, Predictions]  # by rule; with each query's own mask where answers are asked for
    passed: Any  # `thresholds_passed` [B, H, W]; None without a sweep


jax.tree_util.register_dataclass(_DeviceAnswers)


class _Measures:
    """The measurements of this process's records of a split."""

    def __init__(
        self,
        config: Config,
        source: splits.Split,
        thresholds: Sequence[float],
        on_answer: Callable[[int, Grounding, Row], None] | None,
    ):
        settings = config.eval
        self._settings, self._source, self._on_answer = settings, source, on_answer
        self._metrics = {rule: Metrics(settings.task, settings.score_threshold, settings.protocol) for rule in RULES}
        self._sweep = Sweep(thresholds, settings.protocol) if thresholds else None

    def update(self, answered: _DeviceAnswers, batch: Batch, records: np.ndarray) -> None:
        """Measure the records of a batch, without padding. Waits for the devices."""
        answered = _local(answered)
        predicted = {rule: answers(predictions) for rule, predictions in answered.predictions.items()}
        targets, own = truths(batch.targets), self._settings.no_target_rule
        for i in map(int, np.flatnonzero(batch.example_weight)):
            record = int(records[i])
            truth = self._truth(targets[i], record)
            size = truth.mask.shape
            sized = {rule: resized(answer[i], *size) for rule, answer in predicted.items()}
            group = self._source.group(record)
            rows = {rule: self._metrics[rule].update(sized[rule], truth, record, group) for rule in RULES}
            if self._sweep:
                self._sweep.update(sized[own], resize_levels(answered.passed[i], *size), truth, record)
            if self._on_answer:
                shown = self._source.describe(record)
                always = TASKS[self._settings.task].always_answers
                grounding = to_original_size(answered.predictions[own], i, shown.height, shown.width, always)
                self._on_answer(record, grounding, rows[own])

    def _truth(self, truth: Truth, record: int) -> Truth:
        """The truth at the resolution of the comparison; `truth` is at the network's."""
        if self._settings.resolution == "network":
            return truth
        boxes, mask = self._source.truth(record)
        return Truth(boxes, mask, truth.empty)

    def result(self, split: str, seconds: float) -> Evaluation:
        """The summary of all processes' records."""
        for metrics in self._metrics.values():
            metrics.rows = _merge(metrics.rows)
        if self._sweep:
            self._sweep.rows = _merge(self._sweep.rows)
        return Evaluation(
            split=split,
            rule=self._settings.no_target_rule,
            by_rule=self._metrics,
            seconds=seconds,
            sweep=self._sweep.result() if self._sweep else {},
        )


def _prediction_fn(graph: Any, settings: EvalConfig, mesh: jax.sharding.Mesh, with_masks: bool) -> Any:
    """(state, batch, score threshold, thresholds of the sweep) -> _DeviceAnswers, jitted. No threshold is compiled in."""

    def predict(state: nnx.State, batch: Batch, score_threshold: Array, thresholds: Array) -> _DeviceAnswers:
        outputs = nnx.merge(graph, state)(batch.images, batch.token_ids, batch.token_mask)
        predictions = {}
        for rule in RULES:
            traced = dataclasses.replace(settings, no_target_rule=rule, score_threshold=score_threshold)
            answer = postprocess(outputs, traced, settings.protocol)
            wanted = with_masks and rule == settings.no_target_rule
            predictions[rule] = answer if wanted else dataclasses.replace(answer, masks=None)
        passed = thresholds_passed(outputs, settings, thresholds, settings.protocol) if len(thresholds) else None
        return _DeviceAnswers(predictions, passed)

    everywhere = sharding.replicated(mesh)
    return jax.jit(predict, in_shardings=(everywhere, sharding.batch_sharding(mesh), everywhere, everywhere))


def _local(answered: _DeviceAnswers) -> _DeviceAnswers:
    """This process's rows of a global batch, on the host."""

    def rows(x: jax.Array) -> np.ndarray:
        shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    return jax.tree.map(rows, answered)


def _merge(rows: dict[int, T]) -> dict[int, T]:
    """The rows of all processes, by record."""
    return {record: row for part in of_all(pickle.dumps(rows)) for record, row in pickle.loads(part).items()}


def of_all(data: bytes) -> list[bytes]:
    """The data of every process, in order. Bytes, because JAX would round float64 to float32 on the way."""
    if jax.process_count() == 1:
        return [data]
    lengths = np.ravel(multihost_utils.process_allgather(np.array(len(data))))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everything = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes() for row, length in zip(everything, lengths, strict=True)]


def metric_names(config: Config) -> list[str]:
    """The names of the metrics of a split."""
    return list(Metrics(config.eval.task, config.eval.score_threshold, config.eval.protocol).result())


def summary(metrics: dict[str, float]) -> str:
    """The metrics on one line, without undefined ones."""
    return ", ".join(f"{name} {value:.2f}" for name, value in metrics.items() if not np.isnan(value))


def conditions(config: Config, with_threshold: bool = True) -> str:
    """The conditions of the measurement, on one line."""
    settings = config.eval
    size = f"{config.model.image_height} x {config.model.image_width}"
    compared = f"the network's {size} pixels" if settings.resolution == "network" else "each picture's own pixels"
    line = f"{settings.protocol} protocol, compared at {compared}, {settings.no_target_rule} rule"
    return f"{line}, score threshold {settings.score_threshold:g}" if with_threshold else line
