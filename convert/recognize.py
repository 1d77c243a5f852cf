"""Recognizes the model in a file of official weights, BEiT-3 or InstanceVG, its size, and the matching config.

It is inferred from the names and shapes of the tensors, which do not show the numbers of attention heads and tokens. Those are
known for the published sizes only, so only published models are recognized without a config.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from convert.rules import Tensor
from instancevg_jax.config import Config, ModelConfig, base, large
from instancevg_jax.errors import InputError
from instancevg_jax.models.positions import FIRST_ROWS

ModelKind = Literal["beit3", "instancevg"]
T = TypeVar("T")

NAMES: dict[ModelKind, str] = {"beit3": "BEiT-3", "instancevg": "InstanceVG"}
BACKBONES: dict[ModelKind, str] = {"beit3": "beit3", "instancevg": "vis_enc.beit3"}
WRAPPERS = frozenset({"_orig_mod", "module"})  # of torch.compile and DistributedDataParallel, at any depth
POSITIONS, PATCHES = "encoder.embed_positions.A.weight", "vision_embed.proj.weight"
_FIRST = "beit3.text_embed.weight"  # the first tensor of a model
SIZES = {"base": base(), "large": large()}


@dataclass(frozen=True)
class Recognized:
    """Sizes inferred from a file's tensors. None: the tensor that shows it is missing or has too few dimensions."""

    kind: ModelKind
    width: int | None
    depth: int
    patch_size: int | None
    patches: int | None  # of the picture
    num_queries: int | None

    @property
    def size(self) -> str | None:
        """The name of the published size: "base", "large", or None."""
        for name, model in SIZES.items():
            if (self.width, self.depth) == (model.width, model.depth):
                return name
        return None

    @property
    def picture(self) -> int | None:
        """The side of the square picture in pixels, or None where the number of patches is not a square."""
        side = math.isqrt(self.patches or 0)
        return side * self.patch_size if self.patch_size and side and side * side == self.patches else None

    def __str__(self) -> str:
        text = f"{NAMES[self.kind]}{f' {self.size}' if self.size else ''}, {self.depth} blocks of width {self.width}"
        text += f", {self.picture} x {self.picture} pixels" if self.picture else f", {self.patches} patches"
        return text + (f", {self.num_queries} queries" if self.kind == "instancevg" else "")


def plain_names(state: Mapping[str, T]) -> dict[str, T]:
    """The state dict under the original's names.

    Removes what wrappers add: `module` and `_orig_mod` anywhere in a name, and any prefix of the model, such as `model.` or `net.`,
    with the tensors that are not below it, such as those of a loss. A state dict whose names would collide is returned as it is.
    """
    names = {key: [part for part in key.split(".") if part not in WRAPPERS] for key in state}
    while len({parts[0] for parts in names.values() if parts}) == 1 and all(
        len(parts) > 1 and parts[0] != "beit3" for parts in names.values()
    ):
        names = {key: parts[1:] for key, parts in names.items()}
    plain = {".".join(parts): state[key] for key, parts in names.items()}
    if "text_embed.weight" in plain:  # a backbone that was saved alone
        plain = {f"beit3.{key}": value for key, value in plain.items()}
    if len(plain) < len(state) or "" in plain:
        return dict(state)
    prefix, *others = _prefixes(plain) or [""]
    return plain if others else {key.removeprefix(prefix): plain[key] for key in plain if key.startswith(prefix)}


def recognize(state: Mapping[str, Tensor], source: str) -> Recognized:
    """The model of a state dict with `plain_names`. Raises InputError naming `source` for anything but the two models."""
    if any(key.startswith(f"{BACKBONES['instancevg']}.") for key in state):
        kind: ModelKind = "instancevg"
    elif any(key.startswith(f"{BACKBONES['beit3']}.") for key in state):
        kind = "beit3"
    else:
        some = ", ".join(list(state)[:3])
        if len(models := _prefixes(state)) > 1:
            raise InputError(
                f"{source}: holds several models, {', '.join(models)}; expected the tensors of one of them"
            )
        raise InputError(f"{source}: neither InstanceVG nor BEiT-3; its {len(state)} tensors are called {some}, ...")
    prefix = BACKBONES[kind]
    layers = f"{prefix}.encoder.layers."
    blocks = {key.removeprefix(layers).split(".")[0] for key in state if key.startswith(layers)}
    rows = _size(state, f"{prefix}.{POSITIONS}", 0)
    return Recognized(
        kind=kind,
        width=_size(state, f"{prefix}.text_embed.weight", 1),
        depth=len(blocks),
        patch_size=_size(state, f"{prefix}.{PATCHES}", 3),
        patches=None if rows is None else rows - FIRST_ROWS,
        num_queries=_size(state, "head.query_generation.query_embed.weight", 0),
    )


def check_kind(found: Recognized, kind: ModelKind, source: str) -> None:
    """Raise InputError, naming the right command, if a file holds the other model."""
    if found.kind == kind:
        return
    what = {
        "beit3": "BEiT-3, the backbone alone",
        "instancevg": "a whole InstanceVG model, which model.pretrained takes as well",
    }
    raise InputError(f"{source}: holds {what[found.kind]}; convert it with `python -m convert {found.kind}`")


def check_size(found: Recognized, model: ModelConfig, source: str) -> None:
    """Raise InputError if file and config have different sizes."""
    if (found.width, found.depth) != (model.width, model.depth):
        asked = f"the config asks for {model.depth} blocks of width {model.width}"
        name = next((n for n, m in SIZES.items() if (m.width, m.depth) == (model.width, model.depth)), None)
        hint = f"; take a config of size {found.size}" if found.size else ""
        raise InputError(f"{source}: holds {found}; {asked}{f' ({name})' if name else ''}{hint}")
    if found.num_queries not in (None, model.num_queries):
        asked = f"the config's model.num_queries is {model.num_queries}"
        hint = {1: "; take configs/refcoco.py", 10: "; take configs/grefcoco.py"}.get(found.num_queries or 0, "")
        raise InputError(f"{source}: holds {found}; {asked}{hint}")


def official_config(name: str) -> Config:
    """The config of one of configs/*.py: "grefcoco", or "refcoco:large" with a variant."""
    module, _, variant = name.partition(":")
    get_config = importlib.import_module(f"configs.{module}").get_config
    return get_config(variant) if variant else get_config()


def config_of(found: Recognized, source: str) -> Config:
    """The config of the published model that has these sizes, for the picture size of the file.

    One query means RefCOCO, ten gRefCOCO. The models for Ref-ZOM and R-RefCOCO are the same network as gRefCOCO's; only data set
    and metrics differ. Raises InputError, asking for --config, for every other model.
    """
    names: dict[tuple[str, int | None], str] = {
        ("base", 10): "grefcoco",
        ("base", 1): "refcoco",
        ("large", 1): "refcoco:large",
    }
    if found.kind == "beit3":
        names = {("base", None): "grefcoco", ("large", None): "refcoco:large"}
    name = names.get((found.size or "", found.num_queries))
    if name is None or found.picture is None:
        raise InputError(f"{source}: holds {found}; not a published model, so give its config (--config FILE)")
    config = official_config(name)
    side = found.picture
    model = replace(config.model, image_height=side, image_width=side, patch_size=found.patch_size, pretrained="")
    return replace(config, model=model)


def _prefixes(state: Mapping[str, object]) -> list[str]:
    """What precedes the names of each model in a state dict: "" or a prefix that ends in a dot."""
    found = (key.removesuffix(_FIRST).removesuffix("vis_enc.") for key in state if key.endswith(_FIRST))
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]


def _size(state: Mapping[str, Tensor], key: str, axis: int) -> int | None:
    shape = state[key].shape if key in state else ()
    return shape[axis] if axis < len(shape) else None
