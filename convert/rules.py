"""Conversion by a declarative table of names, used in both directions.

A `RuleTable` states where each tensor of the original's state dict goes in our parameter tree, which names are aliases of
the same tensor, and which are left out and why. Every key needs an entry, and every parameter needs a key.

Names are templates. A wildcard such as `{i}` stands for a decimal integer and must occur on both sides:

    Rule("encoder.layers.{i}.fc1.weight", "backbone.blocks.{i}.fc1.kernel", "transpose")
"""

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from tqdm import tqdm

from instancevg_jax.errors import InputError

Shape = tuple[int, ...]
LayoutChange = Literal["none", "transpose", "conv", "conv_transpose", "squeeze_conv", "patch"]

MAX_SUGGESTIONS = 100  # mismatches up to which the nearest names are searched; the search is quadratic


class Tensor(Protocol):
    """A value of a state dict: an array, or a reference that `np.asarray` reads."""

    @property
    def shape(self) -> Shape: ...


@dataclass(frozen=True)
class Rule:
    """One tensor of the original (`source`) and its name in our tree (`target`).

    Transforms from the original to ours:

        none            as it is
        transpose       [out, in] -> [in, out]
        conv            [out, in, kh, kw] -> [kh, kw, in, out]
        conv_transpose  [in, out, kh, kw] -> [in, kh, kw, out]
        squeeze_conv    [out, in, 1, 1] -> [in, out]
        patch           [width, channels, p, p] -> [p * p * channels, width], rows in the order y, x, channel
    """

    source: str
    target: str
    transform: LayoutChange = "none"

    def __post_init__(self):
        _same_wildcards(self.source, self.target)


@dataclass(frozen=True)
class Ignore:
    """Keys that are left out. `source` is a regular expression for the complete key."""

    source: str
    reason: str


@dataclass(frozen=True)
class RuleTable:
    """The names of one layout."""

    rules: Sequence[Rule]
    aliases: Sequence[tuple[str, str]] = ()  # ("head.box.{i}.", "head.box.0."): prefixes of other names for one module
    ignores: Sequence[Ignore] = ()


@dataclass
class Assignment:
    """The destination of every key of a state dict, decided before any value is read."""

    assigned: dict[str, tuple[str, Rule]] = field(default_factory=dict)  # target path -> source key, its rule
    aliases: dict[str, str] = field(default_factory=dict)  # key -> the key it must equal
    ignored: dict[str, str] = field(default_factory=dict)  # key -> reason
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the original's names
    wrong_shape: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)  # key -> found, expected

    def summary(self) -> str:
        """A table of how many keys are converted, left out, missing and so on."""
        rows = [("converted", len(self.assigned)), ("aliases, equal to another key", len(self.aliases))]
        for reason in sorted(set(self.ignored.values())):
            rows.append((f"left out: {reason}", list(self.ignored.values()).count(reason)))
        rows += [("missing", len(self.missing)), ("unexpected", len(self.unexpected))]
        rows += [("wrong shape", len(self.wrong_shape))]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {count:>5}" for name, count in rows)

    def problems(self) -> list[str]:
        """One line for every tensor that does not fit, in the original's names."""
        suggest = len(self.missing) + len(self.unexpected) <= MAX_SUGGESTIONS
        lines = [f"missing: {key}{_nearest(key, self.unexpected, suggest)}" for key in self.missing]
        known = self.missing or [key for key, _ in self.assigned.values()]
        lines += [f"unexpected: {key}{_nearest(key, known, suggest)}" for key in self.unexpected]
        for key, (found, expected) in self.wrong_shape.items():
            lines.append(f"wrong shape: {key} is {list(found)}, expected {list(expected)}")
        return lines


def assign(state: Mapping[str, Tensor], table: RuleTable, expected: Mapping[str, Shape]) -> Assignment:
    """Assign every key. `expected`: the shape of every parameter of the model, by its path.

    Raises ValueError for a mistake in the table: a key that matches two entries, or a path that two keys fill.
    """
    result = Assignment()
    for key, tensor in state.items():
        entry = classify(key, table)
        if entry is None:
            result.unexpected.append(key)
        elif isinstance(entry, Ignore):
            result.ignored[key] = entry.reason
        elif isinstance(entry, str):
            canonical = classify(entry, table)
            if isinstance(canonical, Rule) and _render(canonical.source, canonical.target, entry) in expected:
                result.aliases[key] = entry
            else:
                result.unexpected.append(key)
        else:
            path = _render(entry.source, entry.target, key)
            if path in result.assigned:
                raise ValueError(f"{key} and {result.assigned[path][0]} both fill {path}")
            if path not in expected:
                result.unexpected.append(key)
                continue
            result.assigned[path] = key, entry
            wanted = source_shape(expected[path], entry.transform)
            if tuple(tensor.shape) != wanted:
                result.wrong_shape[key] = tuple(tensor.shape), wanted
    result.missing = [source_key(path, table)[0] for path in expected if path not in result.assigned]
    return result


def to_target(
    state: Mapping[str, Tensor],
    table: RuleTable,
    expected: Mapping[str, Shape],
    source: str = "the file",
    stale_aliases: bool = False,
) -> dict[str, np.ndarray]:
    """Original -> ours: a float32 array per path of `expected`.

    The largest tensors are converted first, so that little more memory is needed than for the result.

    `source` names the file in errors. Raises InputError if a key or shape does not fit, an alias differs from its
    original (unless `stale_aliases`), or a tensor has values other than finite floats.
    """
    found = assign(state, table, expected)
    check(found, source)
    if not stale_aliases:
        for key in differing_aliases(state, found):
            raise InputError(
                f"{source}: {key} should equal {found.aliases[key]} (one shared module in the original) but differs"
            )
    largest_first = sorted(found.assigned.items(), key=lambda item: -math.prod(state[item[1][0]].shape))
    bar = tqdm(largest_first, "converting", unit=" tensors", leave=False, disable=None)  # on a terminal only
    return {path: _convert(state[key], rule.transform, key, source) for path, (key, rule) in bar}


def differing_aliases(state: Mapping[str, Tensor], found: Assignment) -> Iterator[str]:
    """The aliases whose tensor differs from the one they should equal."""
    return (
        key
        for key, canonical in found.aliases.items()
        if not np.array_equal(np.asarray(state[key]), np.asarray(state[canonical]))
    )


def check(found: Assignment, source: str) -> None:
    """Raise InputError if there are problems."""
    problems = found.problems()
    if problems:
        more = f" and {len(problems) - 3} more, listed with --verbose" if len(problems) > 3 else ""
        raise InputError(
            f"{source} does not fit the model: {len(found.missing)} missing, {len(found.unexpected)} unexpected, "
            f"{len(found.wrong_shape)} of a wrong shape ({'; '.join(problems[:3])}{more})"
        )


def ignored_values(state: Mapping[str, Tensor], table: RuleTable) -> dict[str, np.ndarray]:
    """The tensors that a conversion leaves out, floats as float32, so that a later export can put them back."""
    left_out = {key: np.array(value) for key, value in state.items() if isinstance(classify(key, table), Ignore)}
    return {key: _as_float32(value) if is_float(value.dtype) else value for key, value in left_out.items()}


def to_source(
    params: Mapping[str, np.ndarray], table: RuleTable, left_out: Mapping[str, np.ndarray], copies: int
) -> dict[str, np.ndarray]:
    """Ours -> original: every rule reversed, `left_out` added, and aliases repeated as the same array.

    `copies`: number of names of each shared module. The arrays are views where the transform allows it.
    """
    state: dict[str, np.ndarray] = {}
    for path, value in params.items():
        key, rule = source_key(path, table)
        state[key] = BACKWARD[rule.transform](np.asarray(value))
    for prefix, canonical in table.aliases:
        shared = [key for key in state if key.startswith(canonical)]
        for i in range(copies):
            state |= {prefix.format(i=i) + key.removeprefix(canonical): state[key] for key in shared}
    for key, value in left_out.items():
        if key in state or not isinstance(classify(key, table), Ignore):
            raise ValueError(f"{key} is not a key that the table leaves out")
        state[key] = value
    return state


def source_key(path: str, table: RuleTable) -> tuple[str, Rule]:
    """The original's name of one of our parameters, and its rule. Raises ValueError unless exactly one rule matches."""
    hits = [rule for rule in table.rules if _pattern(rule.target).fullmatch(path)]
    if len(hits) != 1:
        raise ValueError(f"{len(hits)} rules fill the parameter {path}, expected one")
    return _render(hits[0].target, hits[0].source, path), hits[0]


def source_shape(shape: Shape, transform: LayoutChange) -> Shape:
    """The shape in the original of a parameter that has `shape` in ours."""
    return BACKWARD[transform](np.broadcast_to(np.float32(0), shape)).shape


def _patch_forward(x: np.ndarray) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patch_backward(x: np.ndarray) -> np.ndarray:
    size = math.isqrt(x.shape[0] // 3)
    return x.reshape(size, size, 3, x.shape[1]).transpose(3, 2, 0, 1)


FORWARD: dict[LayoutChange, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "transpose": lambda x: x.transpose(1, 0),
    "conv": lambda x: x.transpose(2, 3, 1, 0),
    "conv_transpose": lambda x: x.transpose(0, 2, 3, 1),
    "squeeze_conv": lambda x: x[:, :, 0, 0].transpose(1, 0),
    "patch": _patch_forward,
}
BACKWARD: dict[LayoutChange, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda x: x,
    "transpose": lambda x: x.transpose(1, 0),
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "conv_transpose": lambda x: x.transpose(0, 3, 1, 2),
    "squeeze_conv": lambda x: x.transpose(1, 0)[:, :, None, None],
    "patch": _patch_backward,
}


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is real floating point, including those of ml_dtypes."""
    return dtype.name.startswith(("float", "bfloat"))


def _convert(value: Tensor, transform: LayoutChange, key: str, source: str) -> np.ndarray:
    """A contiguous float32 copy in our layout that keeps no reference to the source."""
    read = np.asarray(value)
    if not is_float(read.dtype):
        raise InputError(f"{source}: {key} holds {read.dtype}; expected floating point numbers")
    converted = np.array(_as_float32(FORWARD[transform](read)), order="C")
    if converted.size and not np.isfinite([converted.min(), converted.max()]).all():  # NaN is both
        raise InputError(f"{source}: {key} holds NaN, infinity or values beyond float32; expected finite numbers")
    return converted


def _as_float32(value: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(np.float32, copy=False)


def classify(key: str, table: RuleTable) -> Rule | Ignore | str | None:
    """The entry that matches `key`; for an alias, the key it should equal; None if nothing matches."""
    hits: list[Rule | Ignore | str] = [rule for rule in table.rules if _pattern(rule.source).fullmatch(key)]
    hits += [ignore for ignore in table.ignores if re.fullmatch(ignore.source, key)]
    for prefix, canonical in table.aliases:
        match = _pattern(prefix).match(key)
        if match and canonical + key[match.end() :] != key:
            hits.append(canonical + key[match.end() :])
    if len(hits) > 1:
        raise ValueError(f"{len(hits)} entries of the table claim {key}: {hits}")
    return hits[0] if hits else None


def _same_wildcards(left: str, right: str) -> None:
    names = [re.findall(r"\{(\w+)\}", template) for template in (left, right)]
    if sorted(names[0]) != sorted(names[1]) or len(set(names[0])) != len(names[0]):
        raise ValueError(f"the wildcards of {left!r} and {right!r} should be the same, each once")


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """The template as a regular expression; every wildcard matches a decimal integer without leading zeros."""
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?P<{p}>0|[1-9][0-9]{{0,8}})" if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def _render(source: str, target: str, name: str) -> str:
    """`target` with the integers that `source` matches in `name`."""
    match = _pattern(source).fullmatch(name)
    assert match is not None
    return target.format(**match.groupdict())


def _nearest(name: str, candidates: Sequence[str], suggest: bool) -> str:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6) if suggest else []
    return f" (nearest: {near[0]})" if near else ""
