"""The language of the embedded data set: its words, its sentences, and what a sentence means in a scene.

The sentence is drawn first, independently of the answer. Then the kind of answer (one target, several or none) is drawn,
and compose.py makes a scene for both. No word, template or length of a sentence therefore predicts whether it has a target:
P(no target) is 1/3 for each of them.

`resolve` reads a sentence strictly. It returns the set of targets, or None where people could disagree:

- "the X", "one X": exactly one X, or none (then there is no target). Two X are ambiguous.
- "two X", "three X": exactly that number, or none. Another number (one star for "two stars") is ambiguous.
- "the Xs": two or more, or none. "every X", "all Xs", "everything red": any number.
- Relations, superlatives, ordinals and "between" hold, or fail, by a clear margin. A superlative or "first" needs at
  least two candidates, or none. Nothing is "left of the X" if there is no X.
- "the X and the Y": one of each, or neither. Only one of the two is ambiguous.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from data_pipelines.shapes.dice import Dice

AnswerKind = Literal["single", "multi", "none"]

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
ATTRIBUTES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
PLURALS = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses", "thing": "things"}
KIND_OF_WORD = {word: kind for kind, words in ATTRIBUTES.items() for word in words}

# Pairs that occur in the split "heldout" only: one per colour and per shape.
HELD_OUT_PAIRS = frozenset(
    zip(COLOURS, ("star", "ring", "heart", "square", "triangle", "cross", "circle"), strict=True)
)

NUMBERS = {1: "one", 2: "two", 3: "three"}
RANKS = {1: "first", 2: "second", 3: "third"}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # towards (x, y)
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
SUPERLATIVES = {"leftmost": (-1, 0), "rightmost": (1, 0), "highest": (0, -1), "lowest": (0, 1)}
LARGEST, SMALLEST = "largest", "smallest"

# Margins between centres are fractions of the picture. Partly hidden objects seem displaced by up to 0.07.
RELATION_MARGIN = 0.12  # least distance for "left of" to hold
OPPOSITE_MARGIN = 0.03  # least distance in the opposite direction for "left of" to be clearly false
ORDER_MARGIN = 0.09  # between neighbours in an order
SIZE_MARGIN = 1.25  # ratio of radii, for "largest" and "smallest"
BETWEEN_LENGTH = 0.35  # least distance of the two objects that something is between


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene. `centre` is (x, y) in [0, 1]; `radius` is a fraction of the picture's shorter side."""

    colour: str
    shape: str
    size: str
    texture: str
    centre: tuple[float, float] = (0.5, 0.5)
    radius: float = 0.1


@dataclass(frozen=True)
class Noun:
    """A noun phrase: the attributes it names (None: any) and optionally one word that it excludes ("that is not red")."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None
    but_not: str | None = None

    def matches(self, thing: SceneObject) -> bool:
        """Whether the object has every named attribute, and not the excluded word."""
        return (
            self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.size in (None, thing.size)
            and self.texture in (None, thing.texture)
            and self.but_not not in (thing.colour, thing.shape, thing.size, thing.texture)
        )

    def named(self) -> tuple[str, ...]:
        """The kinds of attribute it names, in the order of `ATTRIBUTES`; the excluded word does not count."""
        return tuple(kind for kind in ATTRIBUTES if getattr(self, kind) is not None)

    def pair(self) -> tuple[str | None, str | None]:
        """The (colour, shape) that it mentions, even to exclude it."""
        kind = KIND_OF_WORD.get(self.but_not or "")
        return (self.but_not if kind == "colour" else self.colour, self.but_not if kind == "shape" else self.shape)

    def text(self, plural: bool = False) -> str:
        """Its words: "large striped red circles", "thing that is not a star"."""
        head = self.shape or "thing"
        words = [self.size, self.texture, self.colour, PLURALS[head] if plural else head]
        return " ".join(word for word in words if word) + self._exclusion(plural)

    def everything(self) -> str:
        """Its words as "everything red", "everything that is not striped"; for nouns without a shape."""
        words = [self.size, self.texture, self.colour]
        return " ".join(["everything", *(word for word in words if word)]) + self._exclusion(plural=False)

    def _exclusion(self, plural: bool) -> str:
        if self.but_not is None:
            return ""
        word = self.but_not
        if word in SHAPES:
            word = PLURALS[word] if plural else f"a {word}"
        return f" that {'are' if plural else 'is'} not {word}"


@dataclass(frozen=True)
class Expression:
    """A sentence and its parts. `kinds`: the kinds of answer that it can have, besides "none"."""

    template: str
    text: str
    kinds: tuple[AnswerKind, ...]
    noun: Noun
    number: int = 0  # of "two red circles"; 0: not counted
    anchors: tuple[Noun, ...] = ()  # what a relation (one) or "between" (two) refers to
    relation: str = ""  # a key of RELATIONS
    order: str = ""  # a key of SIDES or SUPERLATIVES, LARGEST or SMALLEST
    rank: int = 1  # of "the second circle from the left"
    partner: Noun | None = None  # the second half of "the X and the Y"

    @property
    def attributes(self) -> tuple[str, ...]:
        """Kinds of attribute used, and the template if the sentence uses more than attributes of one noun."""
        plain = self.template in ("the", "every", "plural", "everything")
        return self.noun.named() + (() if plain else (self.template,))


# --- What a sentence means --------------------------------------------------------------------------------------------


def resolve(expression: Expression, things: Sequence[SceneObject]) -> tuple[int, ...] | None:
    """Indices of the targets; (): no target; None: the sentence is ambiguous in this scene."""
    found = [i for i, thing in enumerate(things) if expression.noun.matches(thing)]
    if expression.partner is not None:
        other = [i for i, thing in enumerate(things) if expression.partner.matches(thing)]
        together = tuple(sorted({*found, *other}))
        return together if (len(found), len(other), len(together)) in ((1, 1, 2), (0, 0, 0)) else None
    if expression.anchors:
        found = _related(expression, found, things)
    elif expression.order:
        found = _ordered(expression, found, things)
    if found is None or not found:
        return None if found is None else ()
    if "multi" not in expression.kinds:
        fits = len(found) == 1
    elif "single" not in expression.kinds:
        fits = len(found) == expression.number if expression.number else len(found) >= 2
    else:
        fits = True
    return tuple(found) if fits else None


def _related(expression: Expression, found: list[int], things: Sequence[SceneObject]) -> list[int] | None:
    anchors = []
    for noun in expression.anchors:
        matching = [thing for thing in things if noun.matches(thing)]
        if len(matching) > 1:
            return None
        anchors += matching
    if len(anchors) < len(expression.anchors):
        return []
    others = [i for i in found if things[i] not in anchors]
    if expression.relation:
        verdicts = [_beside(things[i], anchors[0], RELATIONS[expression.relation]) for i in others]
    else:
        verdicts = [_in_between(things[i], anchors[0], anchors[1]) for i in others]
    return None if None in verdicts else [i for i, holds in zip(others, verdicts, strict=True) if holds]


def _beside(thing: SceneObject, anchor: SceneObject, towards: tuple[int, int]) -> bool | None:
    """True within 42 degrees of the direction and far enough, False on the other side, None in doubt."""
    dx, dy = thing.centre[0] - anchor.centre[0], thing.centre[1] - anchor.centre[1]
    along = dx * towards[0] + dy * towards[1]
    across = abs(dx * towards[1]) + abs(dy * towards[0])
    if along >= RELATION_MARGIN and across <= 0.9 * along:
        return True
    return False if along <= -OPPOSITE_MARGIN else None


def _in_between(thing: SceneObject, one: SceneObject, two: SceneObject) -> bool | None:
    """True near the middle of the line between the centres, False clearly off it, None in doubt."""
    ux, uy = two.centre[0] - one.centre[0], two.centre[1] - one.centre[1]
    dx, dy = thing.centre[0] - one.centre[0], thing.centre[1] - one.centre[1]
    squared = ux * ux + uy * uy
    if squared < BETWEEN_LENGTH * BETWEEN_LENGTH:
        return None
    along, across = (dx * ux + dy * uy) / squared, abs(dx * uy - dy * ux) / squared
    if 0.25 <= along <= 0.75 and across <= 0.2:
        return True
    return False if along <= 0 or along >= 1 or across >= 0.5 else None


def _ordered(expression: Expression, found: list[int], things: Sequence[SceneObject]) -> list[int] | None:
    if len(found) < expression.rank:
        return []
    if len(found) == 1:
        return None
    if expression.order in (LARGEST, SMALLEST):
        sign = -1 if expression.order == LARGEST else 1
        ranked = sorted(found, key=lambda i: sign * things[i].radius)
        small, large = sorted((things[ranked[0]].radius, things[ranked[1]].radius))
        return ranked[:1] if large >= SIZE_MARGIN * small else None
    x, y = (SIDES | SUPERLATIVES)[expression.order]
    # Position along the axis, measured from the named side.
    place = {i: -(x * things[i].centre[0] + y * things[i].centre[1]) for i in found}
    ranked = sorted(found, key=place.__getitem__)
    rank = expression.rank
    neighbours = ranked[max(rank - 2, 0) : rank + 1]
    gaps = [place[b] - place[a] for a, b in pairwise(neighbours)]
    return [ranked[rank - 1]] if min(gaps) >= ORDER_MARGIN else None


# --- Drawing a sentence -----------------------------------------------------------------------------------------------

_NOUNS = {  # attributes named, with weights
    ("colour",): 4,
    ("shape",): 5,
    ("size",): 1,
    ("texture",): 1,
    ("colour", "shape"): 7,
    ("size", "shape"): 3,
    ("size", "colour"): 2,
    ("texture", "shape"): 2,
    ("texture", "colour"): 2,
    ("size", "colour", "shape"): 2,
    ("texture", "colour", "shape"): 2,
    ("size", "texture", "shape"): 1,
}
_BASIC = {"the": 6, "every": 5, "number": 5, "plural": 4, "everything": 2}
_SPATIAL = {"relation": 8, "superlative": 6, "ordinal": 5, "between": 4, "negation": 5, "conjunction": 6}
_NAMES = {template: weight for template, weight in _BASIC.items() if template != "everything"}
TEMPLATES = {"basic": _BASIC, "full": _BASIC | _SPATIAL, "outlines": _NAMES}


_Kinds = tuple[str, ...] | None  # of attribute that a noun names; None: drawn by the weights of _NOUNS


def draw_expression(dice: Dice, level: str, held_out: bool) -> Expression:
    """One sentence. With `held_out` its noun names a pair of HELD_OUT_PAIRS; without, no such pair is mentioned.

    At level "outlines", nouns name only a shape, except with `held_out`.
    """
    weights = TEMPLATES[level]
    if level == "outlines" and not held_out:
        return _DRAW_NAME[dice.weighted(weights)](dice, False, ("shape",))
    if held_out:
        weights = {template: weight for template, weight in weights.items() if template != "everything"}
    return _DRAW[dice.weighted(weights)](dice, held_out)


def _noun(dice: Dice, held_out: bool, kinds: _Kinds = None, without: tuple[str, ...] = ()) -> Noun:
    """A noun phrase that names none of the attributes in `without`, or exactly `kinds`."""
    while kinds is None:
        drawn = dice.weighted(_NOUNS)
        usable = not set(without).intersection(drawn) and (not held_out or {"colour", "shape"}.issubset(drawn))
        kinds = drawn if usable else None
    colour, shape = draw_pair(dice, held_out, required=held_out)
    words = {kind: dice.pick(ATTRIBUTES[kind]) for kind in kinds} | {"colour": colour, "shape": shape}
    return Noun(**{kind: words[kind] for kind in kinds})


def draw_pair(dice: Dice, held_out: bool, required: bool = False) -> tuple[str, str]:
    """A colour and a shape: of HELD_OUT_PAIRS if `required`, of any pair if `held_out`, else of the others."""
    while True:
        pair = dice.pick(COLOURS), dice.pick(SHAPES)
        if pair in HELD_OUT_PAIRS if required else held_out or pair not in HELD_OUT_PAIRS:
            return pair


def _anchor(dice: Dice, held_out: bool, others: Sequence[Noun]) -> Noun:
    """A colour and a shape that are not those of `others`, and not what `others` name by one of the two."""
    while True:
        noun = Noun(**dict(zip(("colour", "shape"), draw_pair(dice, held_out), strict=True)))
        if all((noun.colour, noun.shape) != (other.colour, other.shape) for other in others):
            return noun


def _draw_the(dice: Dice, held_out: bool, kinds: _Kinds = None) -> Expression:
    noun = _noun(dice, held_out, kinds)
    return Expression("the", f"the {noun.text()}", ("single",), noun)


def _draw_every(dice: Dice, held_out: bool, kinds: _Kinds = None) -> Expression:
    noun = _noun(dice, held_out, kinds)
    text = f"every {noun.text()}" if dice.chance(0.5) else f"all {noun.text(plural=True)}"
    return Expression("every", text, ("single", "multi"), noun)


def _draw_number(dice: Dice, held_out: bool, kinds: _Kinds = None) -> Expression:
    noun, number = _noun(dice, held_out, kinds), dice.between(1, 3)
    kind: AnswerKind = "single" if number == 1 else "multi"
    return Expression("number", f"{NUMBERS[number]} {noun.text(number > 1)}", (kind,), noun, number=number)


def _draw_plural(dice: Dice, held_out: bool, kinds: _Kinds = None) -> Expression:
    noun = _noun(dice, held_out, kinds)
    return Expression("plural", f"the {noun.text(plural=True)}", ("multi",), noun)


def _draw_everything(dice: Dice, held_out: bool) -> Expression:
    noun = _noun(dice, held_out, kinds=(dice.weighted({"colour": 3, "texture": 2, "size": 1}),))
    return Expression("everything", noun.everything(), ("single", "multi"), noun)


def _draw_relation(dice: Dice, held_out: bool) -> Expression:
    noun, relation = _noun(dice, held_out), dice.pick(tuple(RELATIONS))
    anchor = _anchor(dice, held_out, (noun,))
    every = dice.chance(0.3)
    text = f"{'every' if every else 'the'} {noun.text()} {relation} the {anchor.text()}"
    return Expression("relation", text, ("single", "multi") if every else ("single",), noun, 0, (anchor,), relation)


def _draw_superlative(dice: Dice, held_out: bool) -> Expression:
    order = dice.pick((LARGEST, SMALLEST, LARGEST, SMALLEST, *SUPERLATIVES))
    noun = _noun(dice, held_out, without=("size",) if order in (LARGEST, SMALLEST) else ())
    return Expression("superlative", f"the {order} {noun.text()}", ("single",), noun, order=order)


def _draw_ordinal(dice: Dice, held_out: bool) -> Expression:
    noun, side, rank = _noun(dice, held_out), dice.pick(tuple(SIDES)), dice.between(1, 3)
    text = f"the {RANKS[rank]} {noun.text()} from the {side}"
    return Expression("ordinal", text, ("single",), noun, order=side, rank=rank)


def _draw_between(dice: Dice, held_out: bool) -> Expression:
    noun = _noun(dice, held_out)
    one = _anchor(dice, held_out, (noun,))
    two = _anchor(dice, held_out, (noun, one))
    text = f"the {noun.text()} between the {one.text()} and the {two.text()}"
    return Expression("between", text, ("single",), noun, anchors=(one, two))


def _draw_negation(dice: Dice, held_out: bool) -> Expression:
    """One attribute named and another kind excluded; or nothing named: "everything that is not red"."""
    if held_out:
        noun, kind = _noun(dice, True, kinds=("colour", "shape")), dice.pick(("size", "texture"))
    else:
        named = dice.weighted({(): 1, ("shape",): 3, ("colour",): 2})
        kind = dice.pick([kind for kind in ("colour", "shape", "texture") if kind not in named])
        noun = _noun(dice, False, kinds=named)
    while True:
        excluding = replace(noun, but_not=dice.pick(ATTRIBUTES[kind]))
        if held_out or excluding.pair() not in HELD_OUT_PAIRS:
            break
    if not noun.named():
        return Expression("negation", excluding.everything(), ("single", "multi"), excluding)
    form = dice.weighted({"the": 3, "all": 2})
    text = f"{form} {excluding.text(plural=form == 'all')}"
    return Expression("negation", text, ("single",) if form == "the" else ("single", "multi"), excluding)


def _draw_conjunction(dice: Dice, held_out: bool) -> Expression:
    noun = _noun(dice, held_out, kinds=("colour", "shape"))
    partner = _anchor(dice, held_out, (noun,))
    return Expression("conjunction", f"the {noun.text()} and the {partner.text()}", ("multi",), noun, partner=partner)


_DRAW_NAME = {"the": _draw_the, "every": _draw_every, "number": _draw_number, "plural": _draw_plural}
_DRAW = {
    **_DRAW_NAME,
    "everything": _draw_everything,
    "relation": _draw_relation,
    "superlative": _draw_superlative,
    "ordinal": _draw_ordinal,
    "between": _draw_between,
    "negation": _draw_negation,
    "conjunction": _draw_conjunction,
}


def vocabulary() -> tuple[str, ...]:
    """Every word that a sentence can contain, sorted."""
    words = {word for values in ATTRIBUTES.values() for word in values} | set(PLURALS) | set(PLURALS.values())
    words |= {*NUMBERS.values(), *RANKS.values(), *SIDES, *SUPERLATIVES, LARGEST, SMALLEST}
    words |= {word for relation in RELATIONS for word in relation.split()}
    words |= {"the", "a", "every", "all", "everything", "that", "is", "are", "not", "from", "between", "and"}
    return tuple(sorted(words))
