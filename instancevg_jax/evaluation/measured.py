"""A model, or a file of predictions, measured on the splits of a config."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from data_pipelines.shapes.dataset import TOKENIZER_PATH
from data_pipelines.splits import Split
from instancevg_jax import checkpoint
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT, Predictor, checkpoint_directory
from instancevg_jax.config import Config, ModelConfig, check
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import coco, drawing
from instancevg_jax.evaluation.evaluator import Evaluation, Evaluator, open_eval_split
from instancevg_jax.evaluation.metrics import TASKS, Row
from instancevg_jax.evaluation.predictions import score_predictions
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.runtime.console import say

# fields of the network that evaluation can change: the parameters are independent of them, or are resized
ADJUSTABLE = ("image_height", "image_width", "patch_size", "compute_dtype", "remat")
IRRELEVANT = ("pretrained", "initialization", "drop_path", "head_dropout", *ADJUSTABLE[3:])  # to an evaluation

Handler = Callable[[int, Grounding, Row], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The evaluations of one model, and what a report shows of it."""

    name: str  # short, for people
    origin: str  # path of the checkpoint or of the predictions
    config: Config
    evaluations: Sequence[Evaluation]  # one per split
    sources: dict[str, Split]  # the opened splits by name
    # pairs of picture and sentence -> groundings; None where there is no model
    answer: Callable[[Sequence[tuple[np.ndarray, str]]], list[Grounding]] | None = None
    size: str = ""  # parameters and picture size of the model
    notes: tuple[str, ...] = ()  # what the reader should know about the model


@dataclass(frozen=True, kw_only=True)
class ExtraOutputs:
    """What is written of a model's answers besides the report, below the directory `output`."""

    output: Path | None = None
    sweep: bool = False  # measure at other score thresholds too
    coco: bool = False  # write predictions_SPLIT.json in COCO's results format
    draw: str | None = None  # "all" or "failures": draw answers into drawn/SPLIT


def measure_checkpoint(
    source: str | Path, config: Config, overridden: Sequence[str] = (), extras: ExtraOutputs | None = None
) -> Measured:
    """Measure a checkpoint on every split of `config.data.eval_splits`.

    Args:
        source: a source of `Predictor.from_pretrained`.
        config: its `data` and `eval` sections are used. The network is the checkpoint's.
        overridden: names of the fields of `config.model` that the user set, which replace the checkpoint's values.
        extras: what else to write.

    Raises:
        InputError: no checkpoint, a field of the network that cannot be changed, or a split that cannot be evaluated.
    """
    extras = extras or ExtraOutputs()
    origin = str(checkpoint_directory(source))
    model, config = _load(origin, config, overridden)
    tokenizer = checkpoint.load_tokenizer(origin)
    with_sentences = extras.coco or extras.draw is not None
    sources = {
        split: open_eval_split(config, split, tokenizer, sentences=with_sentences) for split in config.data.eval_splits
    }
    evaluator = Evaluator(model, config, sharding.make_mesh(), sweep=extras.sweep)
    evaluations = [_evaluate(evaluator, model, split, source, config, extras) for split, source in sources.items()]
    predictor = Predictor.from_model(model, config, tokenizer)
    always = TASKS[config.eval.task].always_answers
    return Measured(
        name=_name(origin),
        origin=origin,
        config=config,
        evaluations=evaluations,
        sources=sources,
        answer=functools.partial(predictor.predict_batch, always_answer=always),
        size=_size(model, config),
        notes=predictor.notes,
    )


def measure_predictions(path: Path, config: Config) -> Measured:
    """Score a file of predictions, in the pictures' own pixels. Raises InputError unless `data.eval_splits` is one split."""
    if len(config.data.eval_splits) != 1:
        raise InputError(
            f"data.eval_splits has {len(config.data.eval_splits)} splits, and --predictions is a file for one; expected "
            "something like --config.data.eval_splits=\"('val',)\""
        )
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, resolution="original"))
    (split,) = config.data.eval_splits
    # sentences are not tokenized here, so that any tokenizer will do
    source = open_eval_split(config, split, Tokenizer.from_file(TOKENIZER_PATH), sentences=True)
    evaluation = score_predictions(path, config, split, source)
    return Measured(name=path.name, origin=str(path), config=config, evaluations=[evaluation], sources={split: source})


def _evaluate(
    evaluator: Evaluator, model: InstanceVG, split: str, source: Split, config: Config, extras: ExtraOutputs
) -> Evaluation:
    """Evaluate one split, and write what is extras of its answers."""
    collector = coco.Collector(source) if extras.coco else None
    handlers: list[Handler] = [collector] if collector else []
    if extras.draw and extras.output:
        handlers.append(drawing.drawer(extras.output / "drawn" / split, source, config.eval.task, extras.draw))
    evaluation = evaluator(model, split, source, verbose=True, on_answer=_each(handlers))
    if collector and extras.output:
        collector.write(extras.output / f"predictions_{split}.json")
    return evaluation


def _each(handlers: Sequence[Handler]) -> Handler | None:
    def call(record: int, grounding: Grounding, row: Row) -> None:
        for handler in handlers:
            handler(record, grounding, row)

    return call if handlers else None


def _load(directory: str, config: Config, overridden: Sequence[str]) -> tuple[InstanceVG, Config]:
    """The checkpoint's model, and `config` with the network that it is evaluated with."""
    model, stored = checkpoint.load_model(directory)
    changed = {
        name: getattr(config.model, name)
        for name in overridden
        if getattr(config.model, name) != getattr(stored.model, name)
    }
    for name, value in changed.items():
        if name not in ADJUSTABLE:
            raise InputError(
                f"--config.model.{name} is {value}, but the checkpoint {directory} has {getattr(stored.model, name)}; an "
                f"evaluation can change {', '.join(ADJUSTABLE)} only"
            )
    _note_differences(directory, config.model, stored.model, overridden)
    config = dataclasses.replace(config, model=dataclasses.replace(stored.model, **changed))
    if not changed:
        return model, config
    check(config)
    resized = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    checkpoint.load_pretrained(resized, directory)
    return resized, config


def _note_differences(directory: str, model: ModelConfig, stored: ModelConfig, overridden: Sequence[str]) -> None:
    """Print which values of the config's network are not used, because the checkpoint has others."""
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    differences = [
        f"{name} {getattr(stored, name)} (--config: {getattr(model, name)})"
        for name in names
        if name not in (*IRRELEVANT, *overridden) and getattr(model, name) != getattr(stored, name)
    ]
    if differences:
        say(f"note: the network is the checkpoint's ({_name(directory)}): model.{', model.'.join(differences)}")


def _name(origin: str) -> str:
    """A short name of a checkpoint: RUN/best, RUN/checkpoint, or its directory's name."""
    path = Path(origin)
    if path.resolve() == DEMO_CHECKPOINT.resolve():
        return "built-in"
    return f"{path.parent.name}/{path.name}" if path.name in ("best", "checkpoint") else path.name


def _size(model: InstanceVG, config: Config) -> str:
    millions = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))) / 1e6
    return f"{millions:.1f} M parameters, {config.model.image_width} x {config.model.image_height} pixels"
