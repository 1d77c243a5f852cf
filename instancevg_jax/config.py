"""Every setting of a run, typed. A config file returns one of these from `get_config()`; flags override single fields.

Defaults are the original's for gRefCOCO at base size (its configs/gres/InstanceVG-grefcoco.py); what differs between its five
official configs is set in this project's configs/*.py.
"""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path

from instancevg_jax.errors import InputError


@dataclass
class ModelConfig:
    """Sizes of the network. Source: paper, section 3; models/vis_encs/beit and models/heads of the original."""

    image_height: int = 320
    image_width: int = 320
    patch_size: int = 16
    vocab_size: int = 64010
    max_tokens: int = 50
    max_text_positions: int = 1024
    width: int = 768  # D, of BEiT-3
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    drop_path: float = 0.1  # of the last layer; grows linearly from 0
    head_width: int = 256  # C
    num_queries: int = 10  # Q
    decoder_layers: int = 3  # K
    decoder_heads: int = 8
    decoder_points: int = 4
    decoder_mlp_dim: int = 1024
    query_mlp_dim: int = 512
    head_dropout: float = 0.1
    point_selection: str = "distance"  # or "attention": the Q best patches, without looking at distance
    point_distance_weight: float = 0.003
    text_selection: str = "token"  # the Q best tokens; or "channel": top-k of each channel by itself
    compute_dtype: str = (
        "float32"  # or "bfloat16": matrix products and activations; parameters, norms, outputs stay float32
    )
    remat: str = "none"  # "blocks": recompute blocks and decoder layers in the backward pass; "dots": all but their matrix products
    initialization: str = "normal"  # "local": from scratch, attention starts on patches that are near and look alike
    pretrained: str = ""  # directory of converted weights to start from; "" starts from scratch


@dataclass
class LossConfig:
    """Weights of the loss terms. Source: the original's head and `detr_loss`, `loss_weight` in its configs."""

    # matching costs
    cost_class: float = 1.0
    cost_boxes: float = 5.0
    cost_giou: float = 2.0
    cost_point: float = 2.0
    # detection terms of the last decoder layer; the sum over layers is then scaled by `detection`
    class_weight: float = 1.0
    boxes_weight: float = 5.0
    giou_weight: float = 2.0
    auxiliary_weights: str = "one"  # of earlier layers: 1 each, as the original does; "same": as the last layer's
    no_object_weight: float = 0.1
    detection: float = 0.1
    # masks
    dice: float = 1.0
    bce: float = 1.0
    negative_masks: float = 0.2  # unmatched queries against empty masks; 0 for RefCOCO
    point_map: float = 0.1
    # does the sentence mean anything at all
    no_target: float = 0.2
    no_target_class_weights: tuple[float, float] = (0.9, 1.1)  # (something is meant, nothing is)


@dataclass
class DataConfig:
    """Where the records come from."""

    name: str = "shapes"  # "shapes": the embedded data set; else a TFDS config of data_pipelines.referring
    data_dir: str = ""
    tokenizer: str = ""  # sentencepiece model; "" is the embedded data set's own
    train_split: str = "train"
    eval_splits: tuple[str, ...] = ("val",)
    max_targets: int = 10  # T
    num_workers: int = 2  # threads, each at work on a batch
    num_processes: int = 0  # of training: so many processes of num_workers threads each; 0: threads of this one
    picture_cache_mb: int = 6144  # decoded pictures kept in memory, over all processes; 0: none. Not used with jitter
    jitter: bool = False  # large-scale jitter of training pictures, which leaves alone what a sentence speaks of
    jitter_scales: tuple[float, float] = (0.3, 1.4)  # below 1 the picture shrinks, above 1 a part of it is cut out
    jitter_flip: float = 0.5  # probability of mirroring with jitter
    shapes_level: str = "basic"  # "basic", "full", or "outlines": "basic" with sentences that name nothing but shapes
    shapes_curriculum: int = 0  # > 0: so many examples are of the first level of shapes_turns, then all by turns
    shapes_turns: tuple[str, ...] = ("basic", "full")
    num_eval_examples: int = 0  # 0: the whole split


@dataclass
class OptimConfig:
    """Source: core/optimizer.py and core/scheduler.py of the original."""

    name: str = (
        "adam"  # "adam" (with AMSGrad as torch computes it), "adamw", or "muon" (linear layers' matrices; else Adam)
    )
    learning_rate: float = 5e-4
    backbone_scale: float = 0.1
    layer_decay: float = 1.0  # times this for every block between a backbone parameter and the backbone's end
    frozen: tuple[
        str, ...
    ] = ()  # parameters that stay as they are, by the beginning of their name: "backbone.text_embed"
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9
    weight_decay: float = 0.0
    amsgrad: bool = True
    clip_norm: float = 0.15
    schedule: str = (
        "step"  # "step": warm-up and decay by epoch as the original; "piecewise", "cosine": by optimizer step
    )
    warmup_epochs: int = 1
    decay_epochs: tuple[int, ...] = (7,)
    decay_factor: float = 0.1  # of "step" and "piecewise"
    warmup_steps: int = 0  # of "piecewise" and "cosine", linear
    decay_steps: tuple[int, ...] = ()  # of "piecewise"


@dataclass
class EvalConfig:
    """How answers are read off the outputs and compared."""

    task: str = "gres"  # "gres" (gRefCOCO), "refcoco", "refzom", "rrefcoco"
    protocol: str = "official"  # as the original does, slips included, or "strict"; of training targets too
    resolution: str = "network"  # compare at the network's picture size, as the original does, or at the "original" one
    batch_size: int = 16
    score_threshold: float = 0.7
    mask_threshold: float = 0.5
    score_weighted: bool = True  # multiply a query's score by the probability that something is meant
    no_target_rule: str = "sigmoid"  # "sigmoid": of logit 0, as the original; "softmax": over the two logits
    mask_merge: str = "merge"  # "merge", "global" or "instance"
    nms_threshold: float = 0.0  # 0: no non-maximum suppression


@dataclass
class TrainConfig:
    """The run itself."""

    seed: int = 0
    batch_size: int = 16  # over all devices
    accumulate_steps: int = (
        1  # parts that a batch is worked off in, one after the other; losses are still those of the whole
    )
    mesh_data: int = 0  # devices that a batch is split over, each with all parameters; 0: as many as mesh_fsdp leaves
    mesh_fsdp: int = 1  # devices that parameters, optimizer state and average are split over as well as the batch
    num_epochs: int = 10
    num_steps: int = 0  # > 0 overrides num_epochs
    ema_decay: float = 0.0  # average of parameters and statistics to evaluate with; 0: none, as the original trains
    log_every: int = 50
    eval_every: int = 0  # steps; 0: at the end only
    checkpoint_every: int = 0  # steps between saved states; 0: at the end only
    keep_checkpoints: int = 3  # states that stay, the latest
    best_metric: str = ""  # WORKDIR/best is best in this, on the first of data.eval_splits; "": the task's headline
    bad_steps: str = "stop"  # where loss or gradient is not finite, or loss_limit passed: "stop", or "skip" such steps
    loss_limit: float = 0.0  # > 0: a step with a greater loss is bad too
    checkpoint_dtype: str = "float32"  # of WORKDIR/checkpoint; "float16" halves it (loaded as float32 again)


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
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; expected the config.json of a checkpoint directory") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return from_json(text, str(path))


CHOICES = {
    "model.point_selection": ("distance", "attention"),
    "model.text_selection": ("token", "channel"),
    "model.compute_dtype": ("float32", "bfloat16", "float64"),
    "model.initialization": ("normal", "local"),
    "model.remat": ("none", "blocks", "dots"),
    "loss.auxiliary_weights": ("one", "same"),
    **dict.fromkeys(("data.shapes_level", "data.shapes_turns"), ("basic", "full", "outlines")),
    "optim.name": ("adam", "adamw", "muon"),
    "optim.schedule": ("step", "piecewise", "cosine"),
    "eval.task": ("gres", "refcoco", "refzom", "rrefcoco"),
    "eval.protocol": ("official", "strict"),
    "eval.resolution": ("network", "original"),
    "eval.no_target_rule": ("sigmoid", "softmax"),
    "eval.mask_merge": ("merge", "global", "instance"),
    "train.bad_steps": ("stop", "skip"),
    "train.checkpoint_dtype": ("float32", "float16"),
}
# field -> least and greatest value
RANGES = {
    **{f"model.{f.name}": (1, math.inf) for f in dataclasses.fields(ModelConfig) if f.type in ("int", int)},
    **dict.fromkeys(("model.drop_path", "model.head_dropout", "train.ema_decay"), (0, 1)),
    **dict.fromkeys(("eval.score_threshold", "eval.mask_threshold", "eval.nms_threshold", "data.jitter_flip"), (0, 1)),
    **dict.fromkeys(("train.batch_size", "train.accumulate_steps", "train.log_every"), (1, math.inf)),
    **dict.fromkeys(("train.keep_checkpoints", "eval.batch_size", "data.max_targets"), (1, math.inf)),
    **dict.fromkeys(
        ("train.num_steps", "train.num_epochs", "train.eval_every", "train.checkpoint_every"), (0, math.inf)
    ),
    **dict.fromkeys(("data.num_workers", "data.num_processes", "data.picture_cache_mb"), (0, math.inf)),
    **dict.fromkeys(("data.num_eval_examples", "data.shapes_curriculum", "optim.learning_rate"), (0, math.inf)),
    **dict.fromkeys(
        ("optim.warmup_steps", "optim.warmup_epochs", "optim.clip_norm", "optim.weight_decay"), (0, math.inf)
    ),
}


def check(config: Config) -> None:
    """Raise InputError for the first setting that names no choice, is out of range, or does not fit another one."""
    for name, choices in CHOICES.items():
        value = _get(config, name)
        for one in (value or ("",)) if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise InputError(f"{name} is {one!r}; expected one of {', '.join(choices)}")
    for name, (least, greatest) in RANGES.items():
        value = _get(config, name)
        if not least <= value <= greatest:
            expected = f"at least {least}" if greatest == math.inf else f"{least} to {greatest}"
            raise InputError(f"{name} is {value}; expected {expected}")
    _check_sizes(config.model)


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
            told = f"model.{name} is {getattr(model, name)}, model.{part} {getattr(model, part)}"
            raise InputError(f"{told}; expected a multiple: {whole}")
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
        told = f"model.max_tokens is {tokens}, model.max_text_positions {model.max_text_positions}"
        raise InputError(f"{told}; expected at most {model.max_text_positions - 2} tokens: two positions are not used")


def _get(config: Config, name: str) -> typing.Any:
    section, field_name = name.split(".")
    return getattr(getattr(config, section), field_name)


def _from_dict(cls: type, raw: object, source: str, prefix: str):
    if not isinstance(raw, dict):
        raise InputError(f"{source}: {prefix or 'the file'} should be a JSON object, not {type(raw).__name__}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(raw) - set(hints))
    if unknown:
        raise InputError(f"{source}: unknown field {prefix}{unknown[0]}; {cls.__name__} has {', '.join(hints)}")
    return cls(**{name: _value(hints[name], value, source, prefix + name) for name, value in raw.items()})


def _value(hint: typing.Any, value: typing.Any, source: str, name: str):
    if dataclasses.is_dataclass(hint):
        return _from_dict(typing.cast(type, hint), value, source, name + ".")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list):
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
