"""Publishes the models of a run: the last one and the best ones, with their metrics."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from data_pipelines.splits import Split
from instancevg_jax import checkpoint
from instancevg_jax.answers.draw import TrueObjects, draw_grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.evaluation.evaluator import Evaluator, summary
from instancevg_jax.evaluation.metrics import TASKS
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.console import say
from instancevg_jax.training import train_state
from instancevg_jax.training.log import RunLog
from instancevg_jax.training.plan import Plan, best_metrics
from instancevg_jax.training.train_state import TrainState

PICTURES = 8  # answers that TensorBoard shows of each validation
Results = dict[str, dict[str, float]]  # split -> metric -> percent


class Publisher:
    """Writes WORKDIR/checkpoint, measures it, and keeps it as WORKDIR/best* if it is the best so far."""

    def __init__(
        self,
        plan: Plan,
        graph: Any,
        workdir: Path,
        log: RunLog,
        command: Sequence[str],
        check: Callable[[], None],
    ) -> None:
        """`command` is noted in the checkpoints. `check` is called after each evaluated batch; it may raise to interrupt."""
        self._plan, self._graph, self._workdir, self._log = plan, graph, workdir, log
        self._command, self._check = " ".join(command), check
        self._compiled: tuple[Evaluator, Predictor] | None = None
        self._measured: dict[tuple[int, str], dict[str, float]] = {}  # (step, split) -> metrics

    def validate(self, state: TrainState, step: int) -> None:
        """Publish the model, measure it on the validation splits, and keep it where it is the best so far."""
        model = self._publish(state, step)
        names = self._plan.validation_splits
        results = self._measure_all(model, step, names)
        if names and sharding.is_first_process():
            for folder, metric in best_metrics(self._plan.config).items():
                self._keep_if_best(folder, metric, model, step, results)
        self._log_metrics(step, results)  # last, since a resumed run repeats a validation that is not logged
        sharding.wait_for_all("the model is validated")

    def finish(self, state: TrainState, step: int) -> Results:
        """Measure the best models on data.eval_splits, or the last one if none was validated.

        Returns the metrics of WORKDIR/best, or of the last model.
        """
        folders = [name for name in best_metrics(self._plan.config) if (self._workdir / name).is_dir()]
        if self._plan.eval_every and folders:
            return self._measure_best(folders)
        model = self._publish(state, step)
        results = self._measure_all(model, step, self._plan.config.data.eval_splits)
        self._log_metrics(step, results)
        sharding.wait_for_all("the last model is measured")
        return results

    def _measure_best(self, folders: Sequence[str]) -> Results:
        """Each best model once, though several folders may hold it."""
        steps = {name: checkpoint.load_provenance(self._workdir / name)["step"] for name in folders}
        results: dict[int, Results] = {}
        for step in dict.fromkeys(steps.values()):
            holders = [name for name in folders if steps[name] == step]
            model, _ = checkpoint.load_model(self._workdir / holders[0])
            results[step] = {}
            for split in self._plan.config.data.eval_splits:
                metrics = results[step][split] = self._measure(model, step, split)
                self._log.scalars(step, split, metrics, model=", ".join(holders))
                say(f"{', '.join(holders)} (step {step}), {split}: {summary(metrics)}")
        return results[steps[folders[0]]]

    def _publish(self, state: TrainState, step: int) -> InstanceVG:
        """Write WORKDIR/checkpoint. Returns the model on the host, where each process can use it alone."""
        weights = jax.device_get(sharding.gather(train_state.weights(state), self._plan.mesh))
        model = nnx.merge(self._graph, *weights)
        self._save("checkpoint", model, step, {})
        return model

    def _log_metrics(self, step: int, results: Results) -> None:
        for split, metrics in results.items():
            self._log.scalars(step, split, metrics)

    def _measure_all(self, model: InstanceVG, step: int, names: Sequence[str]) -> Results:
        """Print the metrics of the model after a step on some splits, and log pictures of the first of these."""
        results = {split: self._measure(model, step, split) for split in names}
        for split, metrics in results.items():
            say(f"step {self._plan.position(step)}, {split}: {summary(metrics)}")
        if names and sharding.is_first_process():
            self._log_pictures(model, step, names[0])
        return results

    def _measure(self, model: InstanceVG, step: int, split: str) -> dict[str, float]:
        """The metrics on a split of the model after a step."""
        if (step, split) not in self._measured:
            source = self._plan.eval_splits[split]
            evaluation = self._tools(model)[0](model, split, source, after_batch=self._check)
            self._measured[step, split] = evaluation.metrics
        return self._measured[step, split]

    def _tools(self, model: InstanceVG) -> tuple[Evaluator, Predictor]:
        """Evaluator and predictor, which compile once per run."""
        if self._compiled is None:
            config = self._plan.config
            predictor = Predictor.from_model(model, config, self._plan.tokenizer)
            self._compiled = Evaluator(model, config, self._plan.mesh), predictor
        return self._compiled

    def _keep_if_best(self, folder: str, metric: str, model: InstanceVG, step: int, results: Results) -> None:
        values = [metrics[metric] for metrics in results.values() if not math.isnan(metrics[metric])]
        if not values:
            say(f"step {step}: {metric} has nothing to measure on {', '.join(results)}, so {folder} is not updated")
            return
        score = sum(values) / len(values)
        if score > self._best_so_far(folder, metric, list(results)):
            finite = {
                split: {name: None if math.isnan(value) else value for name, value in metrics.items()}
                for split, metrics in results.items()
            }
            best = {"metric": metric, "value": score, "splits": finite}
            self._save(folder, model, step, {"best": best})
            say(f"step {step}: best {metric} so far ({score:.2f}), kept as {folder}")

    def _best_so_far(self, folder: str, metric: str, names: list[str]) -> float:
        """The score of a best model; -inf without one, or if it was chosen by another metric or on other splits."""
        if not (self._workdir / folder).is_dir():
            return -math.inf
        best = checkpoint.load_provenance(self._workdir / folder).get("best", {})
        same = best.get("metric") == metric and list(best.get("splits", ())) == names
        return best["value"] if same else -math.inf

    def _save(self, folder: str, model: InstanceVG, step: int, more: dict[str, Any]) -> None:
        if not sharding.is_first_process():
            return
        config = self._plan.config
        dtype = None if config.train.checkpoint_dtype == "float32" else config.train.checkpoint_dtype
        origin = {"origin": "trained by instancevg_jax.train", "step": step, "command": self._command, **more}
        content = nnx.state(model), config, self._plan.tokenizer.model_bytes, origin
        checkpoint.save_checkpoint(self._workdir / folder, *content, dtype=dtype)

    def _log_pictures(self, model: InstanceVG, step: int, split: str) -> None:
        """The first answers of a split, the same records each time."""
        source: Split = self._plan.eval_splits[split]
        shown = [source.show(record) for record in range(min(PICTURES, len(source)))]
        predictor = self._tools(model)[1].with_model(model)
        pairs = [(one.picture, one.expression) for one in shown]
        groundings = predictor.predict_batch(pairs, always_answer=TASKS[self._plan.config.eval.task].always_answers)
        for record, (one, grounding) in enumerate(zip(shown, groundings, strict=True)):
            truth = TrueObjects(one.boxes_xyxy, one.masks)
            picture = draw_grounding(one.picture, grounding, one.expression, truth)
            self._log.picture(step, f"{split}/{record}", picture)
