"""Fine-tune on your own annotations and pictures in one go: check them, prepare them, choose settings, train.

from instancevg_jax.training.own_data import fine_tune

fine_tune("my.jsonl", "pictures", "instancevg-grefcoco", "runs/mine")
"""

import hashlib
import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs import custom
from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.reading import one_per_expression, read_files
from data_pipelines.checking.command import examine
from data_pipelines.checking.faults import Fault, Rules, is_note
from data_pipelines.prepare import write_data_set
from data_pipelines.prepared.inputs import digests_of
from data_pipelines.prepared.sources import stored_digests
from data_pipelines.records import Record, by_split, is_training, most_objects, units
from data_pipelines.splits import load_tokenizer
from instancevg_jax import checkpoint
from instancevg_jax import config as configs
from instancevg_jax.answers.predictor import checkpoint_directory
from instancevg_jax.config import Config, OptimConfig
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.metrics import TASKS
from instancevg_jax.files import check_writable
from instancevg_jax.runtime.console import say
from instancevg_jax.training.loop import train
from instancevg_jax.training.publish import Results

FAMILY = "custom"
HELD_OUT = 10  # one picture in this number is held out for validation where the data have no validation split
ROUND = 100  # steps between validations, at least: fewer batches are passed over several times
BEIT3_RATES = OptimConfig()  # the original's rates, for a head that starts from scratch
BEIT3_EPOCHS = 10
WORKERS = 4  # threads that decode pictures while they are checked and prepared
_SHOWN = 3  # kinds of faults in a message
_VALIDATION = ("val", "dev")  # how the name of a validation split starts


@dataclass(frozen=True)
class OwnData:
    """Annotations as they were read."""

    files: tuple[Path, ...]
    images: Path
    captions: str
    records: list[Record]
    problems: Problems  # the records that cannot be read, and notes


def fine_tune(
    data: str | Path | Sequence[str | Path],
    images: str | Path,
    start: str | Path | None = None,
    workdir: str | Path = "runs/own",
    *,
    settings: Mapping[str, Any] | None = None,
    captions: str = "",
    command: Sequence[str] = (),
    profile: int = 0,
) -> Results | None:
    """Check annotations, prepare them in WORKDIR/prepared, and train on them. The same call resumes an interrupted run.

    Args:
        data: annotation files of any layout that `instancevg check` reads (docs/data.md). Without a validation split, the records
            of a tenth of the training pictures are held out as "val", the same ones each time.
        images: folder that the pictures' file names are relative to.
        start: what to fine-tune, as `Predictor.from_pretrained` takes it.
            None: train `configs/custom.py:small` from scratch, with BEiT-3's tokenizer unless `settings` has "data.tokenizer".
        workdir: folder of the run; instancevg_jax/train.py lists what is in it.
        settings: values that replace the chosen ones, such as {"train.num_epochs": 3, "data.eval_splits": ("test",)}.
        captions: "categories" makes the category names of a detection export its sentences.
        command: the command line, noted in the checkpoints.
        profile: number of steps to trace into WORKDIR/profile.

    Returns:
        The metrics that `training.loop.train` returns.

    Raises:
        InputError: `instancevg check` finds a fault in the data, WORKDIR holds another run, or `train` cannot run.
    """
    workdir, settings = Path(workdir), dict(settings or {})
    check_writable(workdir / "prepared")
    own = read(data, images, captions)
    initial = initial_settings(start)
    if start is None:
        say("no model to start from (--from): training from scratch with configs/custom.py:small")
    else:
        _check_apart(Path(initial.model.pretrained), workdir)
        say(f"starting from {start}")
    records, config = plan(own, initial, workdir, settings)
    if start is None and "data.tokenizer" not in settings and not Path(config.data.tokenizer).is_file():
        from convert.hub import official_tokenizer

        config.data.tokenizer = str(
            official_tokenizer(
                "training from scratch needs a tokenizer: start from a model with --from, or name a sentencepiece model "
                "with --config.data.tokenizer, such as BEiT-3's"
            )
        )
    _prepare(own, records, config, workdir)
    results = train(config, workdir, command, profile)
    if results is not None:
        unseen = [record for record in records if record.split in config.data.eval_splits and record.instances]
        shown = (unseen or records)[0]
        picture = str(own.images / shown.picture)
        asked = ["--image", picture, "--expression", shown.expressions[0], "--output", "answer.png"]
        say(f"try it: {shlex.join(['instancevg', 'predict', '--checkpoint', str(workdir), *asked])}")
    return results


def read(data: str | Path | Sequence[str | Path], images: str | Path, captions: str = "") -> OwnData:
    """Read annotation files. Records that cannot be read are listed in `problems`. Raises InputError for an unknown layout."""
    files = tuple(Path(file) for file in ([data] if isinstance(data, str | Path) else data))
    if not Path(images).is_dir():
        raise InputError(f"{images}: no such folder; expected the pictures")
    problems = Problems(keep=True)
    records = read_files(files, problems, images=images, captions=captions, merge="join")
    if not records:
        cause = " ({0.where}: {0.what})".format(problems.found[0]) if problems.found else ""
        raise InputError(f"{', '.join(map(str, files))}: no record can be read{cause}; expected at least one")
    return OwnData(files, Path(images), captions, records, problems)


def initial_settings(start: str | Path | None) -> Config:
    """The settings to train with, before the data are known: of `configs/custom.py`, with the network of `start`.

    Raises InputError if `start` is no model.
    """
    if start is None:
        return custom.get_config("small")
    directory = checkpoint_directory(start)
    origin, provenance = configs.load(directory / checkpoint.CONFIG), checkpoint.load_provenance(directory)
    sized = custom.get_config("base" if origin.model.width >= configs.base().width else "small")
    config = custom.get_config("base")
    config.model = replace(
        origin.model,
        pretrained=str(directory),
        compute_dtype=sized.model.compute_dtype,
        remat=sized.model.remat,
    )
    config.loss = origin.loss
    config.data.tokenizer = str(directory / checkpoint.TOKENIZER)
    config.eval = replace(
        origin.eval, task=config.eval.task, protocol=config.eval.protocol, batch_size=config.eval.batch_size
    )
    if provenance.get("converted_from") == "beit3":
        config.optim, config.train.num_epochs = BEIT3_RATES, BEIT3_EPOCHS
    else:
        config.optim.backbone_scale = sized.optim.backbone_scale
    return config


def plan(own: OwnData, initial: Config, workdir: Path, settings: Mapping[str, Any]) -> tuple[list[Record], Config]:
    """The records with their final splits, and the config to train with. Prints what was chosen because of the data.

    Args:
        own: what was read.
        initial: see `initial_settings`.
        workdir: the data are prepared in WORKDIR/prepared.
        settings: values that take precedence over all others.

    Raises:
        InputError: there is no training split or more than one, a single picture leaves none to hold out, or a setting is
            not possible.
    """
    chosen = configs.with_values(initial, settings)
    if chosen.data.name != FAMILY:
        raise InputError(f"data.name is {chosen.data.name!r}; your own data are prepared as {FAMILY!r}")
    records = own.records
    train_split = settings.get("data.train_split") or _train_split(records)
    named = {*settings.get("data.validation_splits", ()), *settings.get("data.eval_splits", ())}
    validation = tuple(name for name in by_split(records) if name.startswith(_VALIDATION))
    if "val" in named - by_split(records).keys() or not (named or validation):
        records = hold_out(records, train_split)
        validation = (*validation, "val")
    others = [name for name in by_split(records) if not is_training(name) and name not in validation]
    trained = by_split(records).get(train_split, [])
    found = {
        "data.data_dir": str(workdir / "prepared"),
        "data.train_split": train_split,
        "data.validation_splits": validation,
        "data.eval_splits": (*validation, *others),
        **_by_content(trained, initial),
        **_lengths(len(units(trained)), chosen),
    }
    config = configs.with_values(initial, {**found, **settings})
    most = most_objects(records, config.eval.protocol)
    if most > config.model.num_queries:
        say(f"warning: up to {most} objects in a record; this network finds at most {config.model.num_queries}")
    return records, config


def hold_out(records: Sequence[Record], split: str) -> list[Record]:
    """`records` with those of one training picture in ten moved from `split` to "val", one per expression.

    The pictures are those whose names have the smallest hashes: the same ones on every machine, and mostly the same when
    pictures are added. Prints what was held out. Raises InputError if `split` has one picture only.
    """
    pictures = sorted({r.image_key for r in records if r.split == split}, key=_hash)
    if len(pictures) == 1:
        raise InputError(
            f"{split}: one picture only, and no validation split; expected a second picture, to hold it out"
        )
    held = set(pictures[: max(1, round(len(pictures) / HELD_OUT))])
    divided: list[Record] = []
    for record in records:
        is_held = record.split == split and record.image_key in held
        divided += one_per_expression(replace(record, split="val")) if is_held else [record]
    say(
        f"no validation split: the records of {len(held):,} of {len(pictures):,} pictures are held out as 'val', the same "
        "ones each time"
    )
    return divided


def _train_split(records: Sequence[Record]) -> str:
    splits = list(by_split(records))
    training = [name for name in splits if is_training(name)]
    if len(training) == 1:
        return training[0]
    if not training:
        raise InputError(f"no training split: expected a name that starts with 'train', found {', '.join(splits)}")
    raise InputError(
        f"{len(training)} training splits ({', '.join(training)}); choose one with --config.data.train_split"
    )


def _by_content(records: Sequence[Record], initial: Config) -> dict[str, Any]:
    """Settings that follow from what the training records hold."""
    found: dict[str, Any] = {}
    objects = [instance for record in records for instance in record.instances]
    if initial.eval.task == "gres" and initial.model.num_queries == 1 and _one_object_each(records):
        found["eval.task"] = "refcoco"
    boxes_only = sum(not instance.segmentation for instance in objects)
    if 0 < boxes_only < len(objects):
        say(f"{boxes_only:,} of {len(objects):,} objects have no mask: their box counts as a filled mask")
    elif boxes_only:
        task = TASKS[found.get("eval.task", initial.eval.task)]
        found["train.best_metric"] = task.detection
        effect = "masks are learned as filled boxes"
        if initial.model.pretrained:
            found |= {"loss.dice": 0.0, "loss.bce": 0.0}
            effect = "the losses of masks are off"
        say(f"boxes only: {effect}, and the best model is chosen by {task.detection}")
    return found


def _one_object_each(records: Sequence[Record]) -> bool:
    return all(len(record.instances) == 1 for record in records)


def _lengths(num_items: int, config: Config) -> dict[str, Any]:
    """Epochs for `num_items` items: little data are passed over several times between validations and changes of the rate."""
    times = max(1, math.ceil(ROUND / max(1, math.ceil(num_items / config.train.batch_size))))
    return {
        "train.num_epochs": config.train.num_epochs * times,
        "train.eval_every_epochs": times,
        "train.checkpoint_every_epochs": times,
        "optim.warmup_epochs": config.optim.warmup_epochs * times,
        "optim.decay_epochs": tuple(epoch * times for epoch in config.optim.decay_epochs),
    }


def _prepare(own: OwnData, records: Sequence[Record], config: Config, workdir: Path) -> None:
    """Check the data and write WORKDIR/prepared, unless an earlier run did.

    Raises InputError if a fault is found, or if WORKDIR holds a run on other data.
    """
    data_dir = Path(config.data.data_dir)
    stored = stored_digests(data_dir, FAMILY)
    if stored and not own.problems.found and stored == digests_of(records, own.images):
        say(f"{data_dir}: prepared before")
        return
    if (workdir / "state").is_dir():
        raise InputError(f"{workdir} holds a run on other records or pictures; choose another --workdir")
    rules = Rules(
        load_tokenizer(config),
        config.model.max_tokens,
        config.data.max_targets,
        config.eval.protocol,
    )
    _, faults = examine(own.records, own.problems, own.images, rules, WORKERS)
    _report(faults, own, rules, config)
    write_data_set(FAMILY, records, own.images, data_dir, WORKERS, overwrite=True)
    counts = ", ".join(f"{split} {len(found):,} records" for split, found in by_split(records).items())
    say(f"{data_dir}: {counts}")


def _report(faults: Sequence[Fault], own: OwnData, rules: Rules, config: Config) -> None:
    """Print the notes among `faults`. Raises InputError if there are others, with the command that lists them."""
    command = ["instancevg", "check", FAMILY, "--annotations", *map(str, own.files), "--images", str(own.images)]
    command += ["--captions", own.captions] if own.captions else []
    command += ["--merge", "join"] if len(own.files) > 1 else []
    command += ["--tokenizer", config.data.tokenizer, "--max-tokens", str(rules.max_tokens)]
    command += ["--max-targets", str(rules.max_targets), "--protocol", rules.protocol]
    serious = [fault for fault in faults if not is_note(fault.kind, rules)]
    if serious:
        raise InputError(
            f"{', '.join(map(str, own.files))}: {_counted(serious)}; "
            f"`{shlex.join([*command, '--list', 'faults.jsonl'])}` lists all, `--fix cleaned.jsonl` repairs what can be"
        )
    notes = [fault for fault in faults if fault.kind != "box without mask"]  # `plan` has printed it
    if notes:
        say(f"note: {_counted(notes)}; `{shlex.join(command)}` shows more")


def _counted(faults: Sequence[Fault]) -> str:
    """ "2 x missing picture (the first: a.jpg), 1 x empty box (the first: ...)", of the three most frequent kinds."""
    first: dict[str, Fault] = {}
    for fault in faults:
        first.setdefault(fault.kind, fault)
    kinds = Counter(fault.kind for fault in faults).most_common()
    shown = [f"{n:,} x {kind} (the first: {_place(first[kind])})" for kind, n in kinds[:_SHOWN]]
    others = sum(n for _, n in kinds[_SHOWN:])
    return ", ".join([*shown, *([f"{others:,} of other kinds"] if others else [])])


def _place(fault: Fault) -> str:
    return f"{fault.record or fault.file}: {fault.value}".strip(": ")


def _check_apart(start: Path, workdir: Path) -> None:
    """Raise InputError if the run would replace the model that it starts from."""
    if start.resolve().is_relative_to(workdir.resolve()):
        raise InputError(
            f"--from {start} is inside --workdir {workdir}, which is overwritten; choose another --workdir"
        )


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
