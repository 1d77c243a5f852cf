"""What a run will do: its data, devices and schedule, opened once and checked before anything is written."""

import dataclasses
import math
from dataclasses import dataclass

from jax.sharding import Mesh

from data_pipelines import splits
from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.evaluator import metric_names, open_eval_split
from instancevg_jax.evaluation.metrics import TASKS
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime import sharding

PARTS = 10  # of a run on data without an end, each of which counts as an epoch


@dataclass(frozen=True)
class Plan:
    """Everything that a run reads and how long it takes."""

    config: Config  # train.batch_size is the global batch size
    mesh: Mesh
    tokenizer: Tokenizer
    train_split: splits.Split
    eval_splits: dict[str, splits.Split]  # by name: those of data.validation_splits and data.eval_splits
    num_steps: int
    steps_per_epoch: int
    endless: bool  # the training split has no end, so no epoch is ever completed
    eval_every: int  # steps; 0: no validation
    checkpoint_every: int  # steps; 0: only at the end

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Names of the splits to validate on."""
        return self.config.data.validation_splits or self.config.data.eval_splits

    def validates_after(self, step: int) -> bool:
        """Whether the model is validated after this step: at every interval and after the last step."""
        return self.eval_every > 0 and (step % self.eval_every == 0 or step == self.num_steps)

    def saves_after(self, step: int) -> bool:
        """Whether the state is saved after this step: at every interval, before validating, and after the last step."""
        due = self.checkpoint_every > 0 and step % self.checkpoint_every == 0
        return due or self.validates_after(step) or step == self.num_steps

    def position(self, step: int) -> str:
        """ "1200/8000, epoch 2/10"."""
        if self.endless:
            return f"{step}/{self.num_steps}"
        epoch, epochs = (math.ceil(n / self.steps_per_epoch) for n in (step, self.num_steps))
        return f"{step}/{self.num_steps}, epoch {epoch}/{epochs}"

    def describe(self) -> str:
        """The run in one line, for people."""
        size, devices = self.config.train.batch_size, self.mesh.size
        epochs = f"{self.num_steps / self.steps_per_epoch:.3g}"
        epochs = "" if self.endless else f" ({epochs} epoch{'' if epochs == '1' else 's'})"
        validation = f"validating every {self.eval_every} on {', '.join(self.validation_splits)}"
        return (
            f"{self.num_steps} steps{epochs}, batch size {size} ({size // devices} per device), "
            f"saving every {self.checkpoint_every or self.num_steps} steps, "
            f"{validation if self.eval_every and self.validation_splits else 'no validation'}"
        )


def make_plan(config: Config) -> Plan:
    """Open what a run of `config` reads.

    Raises InputError for settings that do not fit each other, the devices or the data.
    """
    configs.check(config)
    mesh = sharding.make_mesh(config.train.mesh_data, config.train.mesh_fsdp)
    config = _with_global_batch_size(config, mesh)
    settings = config.train
    sharding.check_batch_size(settings.batch_size, mesh, "train.batch_size", settings.accumulate_steps)
    sharding.check_batch_size(config.eval.batch_size, mesh, "eval.batch_size")
    tokenizer = splits.load_tokenizer(config)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(
            f"model.vocab_size is {config.model.vocab_size}; expected at least the tokenizer's {tokenizer.vocab_size} ids"
        )
    train_split = splits.open_split(config, config.data.train_split, tokenizer)
    endless = len(train_split) == splits.ENDLESS
    if endless and not settings.num_steps:
        raise InputError(f"train.num_steps is 0, and the {config.data.name!r} data has no end; expected at least 1")
    eval_splits = _open_eval_splits(config, tokenizer)
    _check_best_metric(config)
    steps_per_epoch = max(math.ceil(len(train_split) / settings.batch_size), 1)
    num_steps = settings.num_steps or steps_per_epoch * settings.num_epochs
    epoch = math.ceil(num_steps / PARTS) if endless else steps_per_epoch
    return Plan(
        config,
        mesh,
        tokenizer,
        train_split,
        eval_splits,
        num_steps,
        steps_per_epoch,
        endless,
        eval_every=settings.eval_every or settings.eval_every_epochs * epoch,
        checkpoint_every=settings.checkpoint_every or settings.checkpoint_every_epochs * epoch,
    )


def _open_eval_splits(config: Config, tokenizer: Tokenizer) -> dict[str, splits.Split]:
    opened: dict[str, splits.Split] = {}
    for field in ("validation_splits", "eval_splits"):
        for name in getattr(config.data, field):
            try:
                opened[name] = opened.get(name) or open_eval_split(config, name, tokenizer)
            except InputError as error:
                raise InputError(f"data.{field}: {error}") from error
    return opened


def best_metrics(config: Config) -> dict[str, str]:
    """Folder in WORKDIR -> the metric that selects the model in it. The last two are the original's choices."""
    task = TASKS[config.eval.task]
    return {
        "best": config.train.best_metric or task.headline,
        "best_detection": task.detection,
        "best_segmentation": task.segmentation,
    }


def _with_global_batch_size(config: Config, mesh: Mesh) -> Config:
    if not config.train.batch_size_per_device:
        return config
    size = config.train.batch_size_per_device * mesh.size
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=size))


def _check_best_metric(config: Config) -> None:
    metric, names = best_metrics(config)["best"], metric_names(config)
    if metric not in names:
        raise InputError(f"train.best_metric is {metric!r}; expected one of {', '.join(names)}")
