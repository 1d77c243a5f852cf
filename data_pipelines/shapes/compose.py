"""Scenes for the sentences of the embedded data set: their objects and the positions of these.

A scene is built for a sentence and a kind of answer, and checked by `resolve`: if the sentence is ambiguous in it, or has
another kind of answer, only the scene is drawn again. The number of objects is drawn before the kind of answer. Neither the
sentence nor the number of objects therefore predicts the answer.

The objects of a scene are listed from back to front. An object overlaps at most one neighbour, by at most
`HIDDEN_DEPTH` radii of the smaller of the two, so that more than half of each object is visible.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import sqrt

from data_pipelines.shapes.dice import Dice
from data_pipelines.shapes.language import (
    ATTRIBUTES,
    BETWEEN_LENGTH,
    HELD_OUT_PAIRS,
    KIND_OF_WORD,
    AnswerKind,
    Expression,
    Noun,
    SceneObject,
    draw_pair,
    resolve,
)

OBJECT_COUNTS = {"basic": (2, 4), "full": (3, 8), "outlines": (2, 4)}
RADII = {"small": (0.085, 0.105), "large": (0.165, 0.2)}  # of the picture's shorter side
HIDDEN_DEPTH = 0.7  # how far two outlines may overlap, in radii of the smaller one
APART = 1.12  # smallest ratio of the distance of centres to the sum of radii for objects that do not touch
_NEAR_MISS = 0.6  # share of distractors that differ from a noun of the sentence in one attribute
_ECHO = 0.25  # share that repeat an earlier distractor's colour and shape
_NESTLE = 0.3  # share of objects that are placed next to an earlier one, if possible, so that they overlap
_CROWD = 6  # with at least this number of objects, large ones are rarer, so that all fit
_EDGE = 1.05  # smallest distance of a centre from the picture's edge, in radii
_Place = tuple[float, float]
_Places = list[_Place]


def draw_scene(
    dice: Dice, expression: Expression, level: str, held_out: bool
) -> tuple[AnswerKind, tuple[SceneObject, ...], tuple[int, ...]]:
    """The kind of answer, the objects, and the indices of the targets."""
    low, high = OBJECT_COUNTS[level]
    only_size = expression.noun.named() == ("size",)  # "the small things": if none is small, all are large
    count = dice.between(max(low, _fewest(expression)), min(high, _CROWD - 1) if only_size else high)
    kind: AnswerKind = "none" if dice.below(3) == 0 else dice.pick(expression.kinds)
    while True:
        things = _draw_things(dice, expression, kind, count, held_out)
        places = _arranged(dice, [thing.radius for thing in things], _hints(dice, expression, kind, things))
        if places is None:
            continue
        order = dice.shuffled(range(count))
        scene = tuple(replace(things[i], centre=places[i]) for i in order)
        referents = resolve(expression, scene)
        if referents is not None and kind_of(referents) == kind:
            return kind, scene, referents


def kind_of(referents: Sequence[int]) -> AnswerKind:
    """ "none", "single" or "multi"."""
    return "none" if not referents else "single" if len(referents) == 1 else "multi"


def _fewest(expression: Expression) -> int:
    """The smallest number of objects with which a scene exists for every kind of answer."""
    if expression.template in ("superlative", "ordinal", "negation", "conjunction", "relation"):
        return max(3, expression.rank + 1)
    return 4 if expression.template == "between" else max(2, expression.number)


# --- Objects ----------------------------------------------------------------------------------------------------------


def _draw_things(dice: Dice, expression: Expression, kind: AnswerKind, count: int, held_out: bool) -> list[SceneObject]:
    """Objects without positions; those that the sentence mentions come first."""
    wanted = _wanted(dice, expression, kind, count)
    things = [_matching(dice, noun, count, held_out) for noun in wanted]
    nouns = [expression.noun, *expression.anchors]
    if expression.partner is not None:
        nouns.append(expression.partner)
    while len(things) < count:
        echo = len(things) > len(wanted) and dice.chance(_ECHO)
        noun = Noun(colour=things[-1].colour, shape=things[-1].shape) if echo else Noun()
        thing = (
            _near_miss(dice, dice.pick(nouns), count, held_out) if noun == Noun() and dice.chance(_NEAR_MISS) else None
        )
        thing = thing or _matching(dice, noun, count, held_out)
        if not any(noun.matches(thing) for noun in nouns):
            things.append(thing)
    return things


def _wanted(dice: Dice, expression: Expression, kind: AnswerKind, count: int) -> list[Noun]:
    """Nouns to draw an object for: the targets, and the anchors and candidates that the sentence needs."""
    noun, none = expression.noun, kind == "none"
    if expression.partner is not None:
        return [] if none else [noun, expression.partner]
    if expression.anchors:
        return _wanted_around(dice, expression, kind, count)
    if expression.order:
        if none:
            return [noun] * (0 if expression.template == "superlative" else dice.below(expression.rank))
        return [noun] * dice.between(max(2, expression.rank), min(count, 3 if expression.rank < 3 else 4))
    if expression.number:
        meant = 0 if none else expression.number
    else:
        meant = 0 if none else 1 if kind == "single" else dice.between(2, min(count, 4 if count >= _CROWD else 3))
    if noun.but_not is None:
        return [noun] * meant
    excluded = replace(noun, but_not=None, **{KIND_OF_WORD[noun.but_not]: noun.but_not})
    return [noun] * meant + [excluded] * min(count - meant, dice.between(1, 2))


def _wanted_around(dice: Dice, expression: Expression, kind: AnswerKind, count: int) -> list[Noun]:
    """For a relation or "between": the anchors, then candidates. Without target, one of the two may be missing."""
    anchors = list(expression.anchors)
    room = count - len(anchors)
    candidates = min(room, dice.between(2 if kind == "multi" else 1, 3 if expression.relation else 2))
    if kind == "none" and dice.chance(0.3):
        if dice.chance(0.5):
            anchors.pop()
        else:
            candidates = 0
    return anchors + [expression.noun] * candidates


def _matching(dice: Dice, noun: Noun, count: int, held_out: bool) -> SceneObject:
    """An object that the noun matches, with random other attributes."""
    while True:
        colour, shape = draw_pair(dice, held_out)
        colour, shape = noun.colour or colour, noun.shape or shape
        if not held_out and (colour, shape) in HELD_OUT_PAIRS:
            continue
        size = noun.size or ("large" if dice.chance(0.5 if count < _CROWD else 0.3) else "small")
        texture = noun.texture or dice.weighted({"plain": 2, "striped": 1, "dotted": 1})
        if noun.but_not not in (colour, shape, size, texture):
            return SceneObject(colour, shape, size, texture, radius=dice.uniform(*RADII[size]))


def _near_miss(dice: Dice, noun: Noun, count: int, held_out: bool) -> SceneObject | None:
    """An object that differs from the noun in one attribute; None if that would be a held-out pair."""
    kinds = [*noun.named(), *(("but_not",) if noun.but_not else ())]
    kind = dice.pick(kinds)
    if kind == "but_not" and noun.but_not is not None:
        missed = replace(noun, but_not=None, **{KIND_OF_WORD[noun.but_not]: noun.but_not})
    else:
        word = dice.pick(ATTRIBUTES[kind])
        if word == getattr(noun, kind):
            return None
        missed = replace(noun, **{kind: word})
    if not held_out and missed.pair() in HELD_OUT_PAIRS:
        return None
    return _matching(dice, missed, count, held_out)


# --- Positions --------------------------------------------------------------------------------------------------------


def _hints(dice: Dice, expression: Expression, kind: AnswerKind, things: list[SceneObject]) -> _Places:
    """Positions of the first objects for "between": two anchors, and the target or a distractor between them."""
    if expression.relation or len(expression.anchors) < 2 or not expression.anchors[1].matches(things[1]):
        return []
    while True:
        one, two, middle = ((dice.uniform(0.2, 0.8), dice.uniform(0.2, 0.8)) for _ in range(3))
        dx, dy = two[0] - one[0], two[1] - one[1]
        if dx * dx + dy * dy < 1.5 * BETWEEN_LENGTH * BETWEEN_LENGTH:
            continue
        along, aside = 0.35 + 0.3 * middle[0], 0.2 * (middle[1] - 0.5)
        spot = (one[0] + along * dx - aside * dy, one[1] + along * dy + aside * dx)
        if kind == "none":
            things[2], things[-1] = things[-1], things[2]
        return [one, two, spot]


def _arranged(dice: Dice, radii: list[float], hints: _Places) -> _Places | None:
    """Centres such that all objects are inside the picture and none is hidden too much; None if they do not fit."""
    places: dict[int, _Place] = {}
    touched: set[int] = set()
    largest_first = sorted(range(len(hints), len(radii)), key=lambda i: -radii[i])
    for i in [*range(len(hints)), *largest_first]:
        for spot in hints[i : i + 1] or _spots(dice, radii[i], places, radii):
            touching = _touching(spot, radii[i], places, radii)
            if touching is not None and len(touching) <= 1 and not touched.intersection(touching):
                places[i] = spot
                touched.update({i, *touching} if touching else ())
                break
        else:
            return None
    return [places[i] for i in range(len(radii))]


def _spots(dice: Dice, radius: float, places: dict[int, _Place], radii: list[float]) -> Iterator[_Place]:
    """Positions to try for one object: sometimes a few next to an earlier object, then random ones."""
    low, high = _EDGE * radius, 1 - _EDGE * radius
    if places and dice.chance(_NESTLE):
        for _ in range(6):
            j = dice.pick(list(places))
            dx, dy = dice.uniform(-1, 1), dice.uniform(-1, 1)
            reach = radius + radii[j] - HIDDEN_DEPTH * min(radius, radii[j]) * dice.uniform(0.5, 1)
            scale = reach / max(sqrt(dx * dx + dy * dy), 1e-3)
            x, y = places[j][0] + scale * dx, places[j][1] + scale * dy
            if low <= x <= high and low <= y <= high:
                yield x, y
    for _ in range(30):
        yield dice.uniform(low, high), dice.uniform(low, high)


def _touching(spot: _Place, radius: float, places: dict[int, _Place], radii: list[float]) -> list[int] | None:
    """The placed objects that an object at `spot` would touch; None if the overlap would be too large."""
    touching = []
    for j, (x, y) in places.items():
        dx, dy, reach = spot[0] - x, spot[1] - y, radius + radii[j]
        squared = dx * dx + dy * dy
        nearest = reach - HIDDEN_DEPTH * min(radius, radii[j])
        if squared < nearest * nearest:
            return None
        if squared < APART * APART * reach * reach:
            touching.append(j)
    return touching
