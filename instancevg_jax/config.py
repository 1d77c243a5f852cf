"""Every setting of a run, typed, with its documentation and the values it may have. Config files return a `Config`.

Defaults are the original's for gRefCOCO at base size (its configs/gres/InstanceVG-grefcoco.py). What differs between its five
official configs is set in configs/*.py. Command-line flags override single fields: `--config.section.field=value`.
"""

import dataclasses
import difflib
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

from instancevg_jax.errors import InputError

EMBEDDED = "shapes"  # data.name of the data set that comes with the package
REMOVED = {  # settings of older versions -> the value at which they did nothing (None: any)
    "data.jitter": False,
    "data.jitter_scales": None,
    "data.jitter_flip": None,
    "data.num_processes": 0,
}


def setting(
    default: typing.Any,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = -math.inf,
    most: float = math.inf,
) -> typing.Any:
    """A field of a config section. `check` holds it, or each element of a tuple, to what is stated here.

    Args:
        default: its value where a config file says nothing.
        text: what `--help` shows.
        choices: the strings it may be; () allows any.
        least, most: the range of a number, both ends included.
    """
    return field(default=default, metadata={"text": text, "choices": choices, "least": least, "most": most})


@dataclass
class ModelConfig:
    """Sizes of the network. Source: paper, section 3; models/vis_encs/beit and models/heads of the original."""

    image_height: int = setting(320, "Height of the network's picture in pixels, a multiple of patch_size.", least=1)
    image_width: int = setting(320, "Width of the network's picture in pixels, a multiple of patch_size.", least=1)
    patch_size: int = setting(16, "Side of a square patch in pixels.", least=1)
    vocab_size: int = setting(64010, "Rows of the text embedding.", least=1)
    max_tokens: int = setting(50, "Length of the token sequence (L), BOS and EOS included.", least=1)
    max_text_positions: int = setting(1024, "Rows of the text position table; two of them are unused.", least=1)
    width: int = setting(768, "Width of BEiT-3 (D), a multiple of num_heads.", least=1)
    depth: int = setting(12, "Number of BEiT-3 blocks.", least=1)
    num_heads: int = setting(12, "Attention heads of a BEiT-3 block.", least=1)
    mlp_dim: int = setting(3072, "Hidden width of BEiT-3's feed-forward layers.", least=1)
    drop_path: float = setting(
        0.1, "Drop-path rate of the last block; it grows linearly from 0 at the first.", least=0, most=1
    )
    head_width: int = setting(256, "Width of the head (C), a multiple of 4 and of decoder_heads.", least=1)
    num_queries: int = setting(10, "Number of instance queries (Q).", least=1)
    decoder_layers: int = setting(3, "Number of deformable decoder layers (K).", least=1)
    decoder_heads: int = setting(8, "Attention heads of a decoder layer.", least=1)
    decoder_points: int = setting(4, "Sampling points per head and pyramid level.", least=1)
    decoder_mlp_dim: int = setting(1024, "Hidden width of the decoder's feed-forward layers.", least=1)
    query_mlp_dim: int = setting(512, "Hidden width of the text-to-image layer's feed-forward layers.", least=1)
    head_dropout: float = setting(0.1, "Dropout rate in the head.", least=0, most=1)
    point_selection: str = setting(
        "distance",
        "How query points are chosen: 'distance' spreads them out, 'attention' takes the Q best patches.",
        choices=("distance", "attention"),
    )
    point_distance_weight: float = setting(0.003, "Weight of the distance to the chosen points, for 'distance'.")
    text_selection: str = setting(
        "token",
        "How text tokens are chosen: the Q best tokens ('token'), or the Q largest values of each channel ('channel').",
        choices=("token", "channel"),
    )
    compute_dtype: str = setting(
        "float32",
        "Data type of matrix products and activations. Parameters, norms and outputs stay float32 with 'bfloat16'.",
        choices=("float32", "bfloat16", "float64"),
    )
    remat: str = setting(
        "none",
        "What the backward pass recomputes to save memory: nothing, all of each block ('blocks'), or all but its matrix "
        "products ('dots').",
        choices=("none", "blocks", "dots"),
    )
    initialization: str = setting(
        "official",
        "First values of parameters that no checkpoint provides: the original's distributions ('official'), Flax's defaults "
        "('normal'), or 'local': as 'normal', but attention starts on patches that are near and look alike.",
        choices=("official", "normal", "local"),
    )
    pretrained: str = setting("", "Checkpoint directory of weights to start from. Empty: start from scratch.")


@dataclass
class LossConfig:
    """Weights of the loss terms. Source: the original's head and `detr_loss`, `loss_weight` in its configs."""

    cost_class: float = setting(1.0, "Weight of the object probability in the matching cost.", least=0)
    cost_boxes: float = setting(5.0, "Weight of the L1 distance of boxes in the matching cost.", least=0)
    cost_giou: float = setting(2.0, "Weight of the generalized IoU in the matching cost.", least=0)
    cost_point: float = setting(
        2.0, "Weight of the L1 distance between query point and box centre in the matching cost.", least=0
    )
    class_weight: float = setting(1.0, "Weight of the class term of the last decoder layer.", least=0)
    boxes_weight: float = setting(5.0, "Weight of the L1 term of the last decoder layer.", least=0)
    giou_weight: float = setting(2.0, "Weight of the generalized-IoU term of the last decoder layer.", least=0)
    auxiliary_weights: str = setting(
        "one",
        "Weights of the earlier decoder layers' terms: 1 each, as in the original ('one'), or the last layer's ('same').",
        choices=("one", "same"),
    )
    no_object_weight: float = setting(0.1, "Class weight of 'no object' in the class term.", least=0)
    detection: float = setting(0.1, "Factor of the sum of all detection terms.", least=0)
    dice: float = setting(1.0, "Weight of the dice loss of masks.", least=0)
    bce: float = setting(1.0, "Weight of the binary cross entropy of masks.", least=0)
    negative_masks: float = setting(
        0.2, "Weight of unmatched queries' masks, compared with empty masks. 0 in the RefCOCO config.", least=0
    )
    point_map: float = setting(0.1, "Weight of the point map's mask loss.", least=0)
    no_target: float = setting(0.2, "Weight of the no-target term.", least=0)
    no_target_class_weights: tuple[float, float] = setting(
        (0.9, 1.1), "Class weights of the no-target term: (something is meant, nothing is meant).", least=0
    )


@dataclass
class DataConfig:
    """Where the records come from."""

    name: str = setting(
        EMBEDDED, "'shapes', the embedded data set, or a prepared one: grefcoco, refcoco, refzom, rrefcoco, custom."
    )
    data_dir: str = setting("", "Directory that `data_pipelines.prepare` wrote to. Unused by 'shapes'.")
    tokenizer: str = setting("", "Path of the sentencepiece model. Empty: the embedded data set's own.")
    train_split: str = setting("train", "Split to train on.")
    validation_splits: tuple[str, ...] = setting((), "Splits to validate on while training. Empty: data.eval_splits.")
    eval_splits: tuple[str, ...] = setting(
        ("val",), "Splits that `evaluate` measures, and that training measures at its end."
    )
    max_targets: int = setting(10, "Largest number of objects per record (T); a record with more is an error.", least=1)
    num_workers: int = setting(2, "Data-loading threads per process.", least=1)
    picture_cache_mb: int = setting(
        6144, "Size of the in-memory cache of decoded pictures in MB, per process. 0: no cache.", least=0
    )
    shapes_level: str = setting(
        "basic",
        "Difficulty of the embedded data: 'basic', 'full', or 'outlines' ('basic' with sentences that name only shapes).",
        choices=("basic", "full", "outlines"),
    )
    shapes_curriculum: int = setting(
        0,
        "Number of training examples of the first level of shapes_turns; later ones cycle through all of them. 0: train "
        "on shapes_level only.",
        least=0,
    )
    shapes_turns: tuple[str, ...] = setting(
        ("basic", "full"), "Levels of the curriculum.", choices=("basic", "full", "outlines")
    )
    num_eval_examples: int = setting(0, "Number of examples to evaluate per split. 0: the whole split.", least=0)


@dataclass
class OptimConfig:
    """Optimizer and schedule. Source: core/optimizer.py and core/scheduler.py of the original."""

    name: str = setting(
        "adam",
        "Optimizer: 'adam', 'adamw' (decoupled weight decay), or 'muon' (for matrices of linear layers, Adam elsewhere).",
        choices=("adam", "adamw", "muon"),
    )
    learning_rate: float = setting(5e-4, "Peak learning rate of the head.", least=0)
    backbone_scale: float = setting(0.1, "Factor of the learning rate in the backbone.", least=0)
    layer_decay: float = setting(
        1.0,
        "Factor of the learning rate per block between a backbone parameter and the backbone's end.",
        least=0.01,
        most=1,
    )
    frozen: tuple[str, ...] = setting((), "Prefixes of parameters to freeze, e.g. 'backbone.text_embed'.")
    b1: float = setting(0.9, "Decay rate of Adam's first moment.", least=0, most=1)
    b2: float = setting(0.98, "Decay rate of Adam's second moment.", least=0, most=1)
    eps: float = setting(1e-9, "Adam's epsilon.", least=0)
    weight_decay: float = setting(0.0, "Weight decay of matrices, for 'adamw' and 'muon'.", least=0)
    amsgrad: bool = setting(True, "Use AMSGrad, computed as in torch.")
    clip_norm: float = setting(0.15, "Largest global gradient norm. 0: no clipping.", least=0)
    schedule: str = setting(
        "step",
        "'step' warms up and decays by epoch, as in the original; 'piecewise' and 'cosine' by optimizer step.",
        choices=("step", "piecewise", "cosine"),
    )
    warmup_epochs: int = setting(1, "Epochs of linear warm-up, for 'step'.", least=0)
    decay_epochs: tuple[int, ...] = setting(
        (7,), "Epochs at which 'step' multiplies the rate by decay_factor.", least=0
    )
    decay_factor: float = setting(0.1, "Factor of each decay, for 'step' and 'piecewise'.", least=0)
    warmup_steps: int = setting(0, "Steps of linear warm-up, for 'piecewise' and 'cosine'.", least=0)
    decay_steps: tuple[int, ...] = setting(
        (), "Steps at which 'piecewise' multiplies the rate by decay_factor.", least=0
    )


@dataclass
class EvalConfig:
    """How answers are read off the outputs and compared."""

    task: str = setting(
        "gres",
        "Metrics: 'gres' (gRefCOCO), 'refcoco', 'refzom' or 'rrefcoco'.",
        choices=("gres", "refcoco", "refzom", "rrefcoco"),
    )
    protocol: str = setting(
        "official",
        "'official' reads records and computes metrics exactly as the original; 'strict' without its slips. Applies to "
        "training targets too.",
        choices=("official", "strict"),
    )
    resolution: str = setting(
        "network",
        "Compare masks at the network's picture size, as the original does, or at the picture's 'original' size.",
        choices=("network", "original"),
    )
    batch_size: int = setting(16, "Evaluation batch size over all devices.", least=1)
    score_threshold: float = setting(0.7, "A query counts as an object above this score.", least=0, most=1)
    mask_threshold: float = setting(0.5, "A pixel belongs to a mask from this probability.", least=0, most=1)
    score_weighted: bool = setting(True, "Multiply scores by the probability that something is meant.")
    no_target_rule: str = setting(
        "sigmoid",
        "That probability: 'sigmoid' of the first no-target logit, as in the original, or 'softmax' over both.",
        choices=("sigmoid", "softmax"),
    )
    mask_merge: str = setting(
        "merge",
        "Merged mask: the 'global' mask, the union of 'instance' masks, or the union of both ('merge').",
        choices=("merge", "global", "instance"),
    )
    nms_threshold: float = setting(0.0, "IoU threshold of non-maximum suppression. 0: no suppression.", least=0, most=1)


@dataclass
class TrainConfig:
    """The run itself."""

    seed: int = setting(0, "Seed of parameters, data order and dropout.", least=0, most=2**32 - 1)
    batch_size: int = setting(16, "Global batch size, over all devices.", least=1)
    batch_size_per_device: int = setting(
        0, "Batch size per device; train.batch_size becomes this times the number of devices. 0: not used.", least=0
    )
    accumulate_steps: int = setting(
        1, "Number of parts a batch is computed in, one after the other, to save memory. Losses do not change.", least=1
    )
    mesh_data: int = setting(0, "Size of the data-parallel axis. 0: all devices not used by mesh_fsdp.", least=0)
    mesh_fsdp: int = setting(
        1, "Size of the axis that splits parameters and optimizer state as well as the batch. 1: no splitting.", least=1
    )
    num_epochs: int = setting(10, "Epochs to train.", least=0)
    num_steps: int = setting(0, "Optimizer steps to train. 0: num_epochs decides.", least=0)
    ema_decay: float = setting(
        0.0, "Decay of the weight average used for evaluation. 0: no average, as in the original.", least=0, most=1
    )
    log_every: int = setting(50, "Steps between log lines.", least=1)
    eval_every: int = setting(0, "Steps between validations. 0: eval_every_epochs decides.", least=0)
    eval_every_epochs: int = setting(0, "Epochs between validations. 0: no validation while training.", least=0)
    checkpoint_every: int = setting(0, "Steps between saved states. 0: checkpoint_every_epochs decides.", least=0)
    checkpoint_every_epochs: int = setting(
        1,
        "Epochs between saved states. Of data without an end, a tenth of the run counts as an epoch. 0: save at the end only.",
        least=0,
    )
    keep_checkpoints: int = setting(3, "Number of latest states to keep.", least=1)
    best_metric: str = setting(
        "",
        "Metric that selects WORKDIR/best: its mean over data.validation_splits. Empty: the task's headline metric (gIoU, "
        "mIoU, or rIoU).",
    )
    bad_steps: str = setting(
        "stop",
        "What to do when loss or gradient is not finite or exceeds loss_limit: 'stop', or 'skip' the step.",
        choices=("stop", "skip"),
    )
    loss_limit: float = setting(0.0, "A step with a greater loss is bad. 0: no limit.", least=0)
    checkpoint_dtype: str = setting(
        "float32",
        "Data type of WORKDIR/checkpoint; 'float16' halves it (loaded as float32 again).",
        choices=("float32", "float16"),
    )


@dataclass
class Config:
    """Everything that defines a run; saved as config.json in every checkpoint directory."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def base() -> ModelConfig:
    """BEiT-3 base: 768 wide, 12 layers."""
    return ModelConfig()


def large() -> ModelConfig:
    """BEiT-3 large: 1024 wide, 24 layers. Drop path 0: the original misspells the keyword for this size."""
    return ModelConfig(width=1024, depth=24, num_heads=16, mlp_dim=4096, drop_path=0.0)


def tiny() -> ModelConfig:
    """The parity fixtures' size: 64 wide, 2 layers, 64 x 64 pictures, a vocabulary of 256, the official head."""
    return ModelConfig(image_height=64, image_width=64, vocab_size=256, width=64, depth=2, num_heads=4, mlp_dim=128)


def to_json(config: Config) -> str:
    """The config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, source: str = "config.json") -> Config:
    """The inverse of `to_json`. `source` names the file in errors. Raises InputError on unknown fields, and as `check` does."""
    try:
        config = _from_dict(Config, json.loads(text), source, "")
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{source}: nested too deeply; expected the config.json of a checkpoint directory") from error
    try:
        check(config)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return config


def load(path: str | Path) -> Config:
    """Read a config.json."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the config.json of a checkpoint directory")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; expected the config.json of a checkpoint directory") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return from_json(text, str(path))


def with_values(config: Config, values: typing.Mapping[str, typing.Any]) -> Config:
    """A copy of `config` with other values, such as {"train.num_epochs": 3}.

    Raises InputError as `value_of` and `check` do, and for a value of the wrong type.
    """
    content = dataclasses.asdict(config)
    for name, value in values.items():
        value_of(config, name)
        section, _, leaf = name.partition(".")
        content[section][leaf] = value
    changed = _from_dict(Config, content, "settings", "")
    check(changed)
    return changed


def fields(config: Config) -> dict[str, tuple[dataclasses.Field, typing.Any]]:
    """Dotted name -> (the field, its value), of every setting."""
    sections = {section.name: getattr(config, section.name) for section in dataclasses.fields(config)}
    return {
        f"{name}.{leaf.name}": (leaf, getattr(section, leaf.name))
        for name, section in sections.items()
        for leaf in dataclasses.fields(section)
    }


def value_of(config: Config, name: str) -> typing.Any:
    """The value of a dotted name. Raises InputError for an unknown one, suggesting a similar one."""
    known = fields(config)
    if name not in known:
        leaf = name.rpartition(".")[2]
        near = [other for other in known if other.rpartition(".")[2] == leaf]
        near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see instancevg train --help for all fields"
        raise InputError(f"{name}: no such field; {hint}")
    return known[name][1]


def check(config: Config) -> None:
    """Raise InputError for the first setting that names no choice, is out of range, or does not fit another one."""
    for name, (leaf, value) in fields(config).items():
        for element in value if isinstance(value, tuple) else (value,):
            _check_value(name, leaf.metadata, element)
        if value == () and leaf.metadata["choices"]:
            raise InputError(f"{name} is empty; expected at least one of {', '.join(leaf.metadata['choices'])}")
    _check_sizes(config.model)


_LARGEST = 2**53  # of whole numbers: beyond it, floats and the fixed sizes of libraries fail


def _check_value(name: str, limits: typing.Mapping[str, typing.Any], value: typing.Any) -> None:
    if limits["choices"] and value not in limits["choices"]:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(limits['choices'])}")
    if isinstance(value, str | bool):
        return
    least, most = limits["least"], limits["most"]
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; expected a finite number")
    if isinstance(value, int):
        most = min(most, _LARGEST)
    if not least <= value <= most:
        expected = f"at least {least}" if most >= _LARGEST and value < least else f"{least} to {most}"
        raise InputError(f"{name} is {value}; expected {expected}")


def _check_sizes(model: ModelConfig) -> None:
    patch, tokens = model.patch_size, model.max_tokens
    grid = model.image_height // patch, model.image_width // patch
    for name, part, whole in (
        ("image_height", "patch_size", "pictures are cut into whole patches"),
        ("image_width", "patch_size", "pictures are cut into whole patches"),
        ("width", "num_heads", "a head takes an equal part"),
        ("head_width", "decoder_heads", "a head takes an equal part"),
    ):
        if getattr(model, name) % getattr(model, part):
            stated = f"model.{name} is {getattr(model, name)}, model.{part} {getattr(model, part)}"
            raise InputError(f"{stated}; expected a multiple: {whole}")
    for name in ("head_width", "width") if model.initialization == "local" else ("head_width",):
        if getattr(model, name) % 4:
            raise InputError(f"model.{name} is {getattr(model, name)}; expected a multiple of 4 (sine positions)")
    if min(grid) < 2:
        raise InputError(
            f"pictures of {grid[0]} x {grid[1]} patches; expected 2 x 2 at least (model.image_height, patch_size)"
        )
    for count, things in ((tokens, "tokens"), (grid[0] * grid[1], "patches")):
        by_rank = things == "tokens" or model.point_selection == "attention"  # a point may be chosen twice, a rank not
        if by_rank and model.num_queries > count:
            raise InputError(
                f"model.num_queries is {model.num_queries} with {count} {things}; expected at most {count}"
            )
    if tokens > model.max_text_positions - 2:
        stated = f"model.max_tokens is {tokens}, model.max_text_positions {model.max_text_positions}"
        raise InputError(
            f"{stated}; expected at most {model.max_text_positions - 2} tokens: two positions are not used"
        )


def _from_dict(cls: type, raw: object, source: str, prefix: str):
    if not isinstance(raw, dict):
        raise InputError(f"{source}: {prefix or 'the file'} should be a JSON object, not {type(raw).__name__}")
    raw = {name: value for name, value in raw.items() if not _is_removed(prefix + str(name), value, source)}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise InputError(f"{source}: unknown field {prefix}{unknown[0]}; {cls.__name__} has {', '.join(hints)}")
    return cls(**{name: _value(hints[name], value, source, prefix + name) for name, value in raw.items()})


def _is_removed(name: str, value: object, source: str) -> bool:
    """Whether this is a removed setting at its old default, which an old config.json may still have."""
    if name not in REMOVED:
        return False
    if REMOVED[name] not in (None, value):
        raise InputError(
            f"{source}: {name} is {value!r}; this setting was removed, expected {REMOVED[name]!r} or nothing"
        )
    return True


def _value(hint: typing.Any, value: typing.Any, source: str, name: str):
    if dataclasses.is_dataclass(hint):
        return _from_dict(typing.cast(type, hint), value, source, name + ".")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            element, *rest = typing.get_args(hint)
            if rest == [...] or len(value) == 1 + len(rest):
                return tuple(_value(element, v, source, f"{name}[{i}]") for i, v in enumerate(value))
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif type(value) is hint:
        return value
    raise InputError(
        f"{source}: {name} is {value!r}; expected {getattr(hint, '__name__', hint) if typing.get_origin(hint) is None else hint}"
    )
