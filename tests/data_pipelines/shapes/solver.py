"""A second reading of the embedded data set's sentences, from their text alone, for the tests.

Shares no code with data_pipelines.shapes_language: its own words, its own grammar, its own geometry. Geometry is read
`strict` (a relation holds only when it is plain) or lenient (it holds as soon as it could): a sentence that both readings
answer alike is not ambiguous.
"""

import re
from dataclasses import dataclass
from itertools import combinations

from data_pipelines.shapes.dataset import SceneObject

ADJECTIVES = {
    "size": {"small", "large"},
    "texture": {"plain", "striped", "dotted"},
    "colour": {"red", "orange", "yellow", "green", "cyan", "blue", "purple"},
}
NOUNS = {"circle", "square", "triangle", "star", "heart", "ring", "cross", "thing"}
SINGULAR = {name + "s": name for name in NOUNS - {"cross"}} | {"crosses": "cross"}
AXES = {"left": (1, 0), "right": (-1, 0), "top": (0, 1), "bottom": (0, -1)}  # growing away from the side that is named
SIDE_OF = {"leftmost": "left", "rightmost": "right", "highest": "top", "lowest": "bottom"}
SIDE_OF |= {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
RANK = {"first": 1, "second": 2, "third": 3}
NUMBER = {"one": 1, "two": 2, "three": 3}


class Ambiguous(Exception):
    """People could disagree on what the sentence means here."""


@dataclass
class Phrase:
    """A parsed noun phrase: {attribute: word} that must hold, one that must not, and whether the noun is a plural."""

    must: dict[str, str]
    must_not: tuple[str, str] | None
    plural: bool

    def among(self, things: list[SceneObject]) -> list[int]:
        return [i for i, thing in enumerate(things) if self._fits(thing)]

    def _fits(self, thing: SceneObject) -> bool:
        if self.must_not and getattr(thing, self.must_not[0]) == self.must_not[1]:
            return False
        return all(getattr(thing, kind) == word for kind, word in self.must.items())


def attribute(word: str) -> tuple[str, str]:
    word = SINGULAR.get(word, word)
    kinds = [kind for kind, words in ADJECTIVES.items() if word in words] or ["shape"]
    assert kinds != ["shape"] or word in NOUNS, word
    return kinds[0], word


def parse(text: str) -> Phrase:
    """A noun phrase without its determiner."""
    head, _, excluded = re.sub(r" that (is|are) not (a )?", "|", text).partition("|")
    words = [word for word in head.split() if word != "everything"]
    must = dict(attribute(word) for word in words)
    assert len(must) == len(words), f"an attribute is named twice in {text!r}"
    must = {kind: word for kind, word in must.items() if word != "thing"}
    return Phrase(must, attribute(excluded) if excluded else None, bool(words) and words[-1] in SINGULAR)


def solve(text: str, things: list[SceneObject], strict: bool) -> tuple[int, ...]:
    """Indices of what is meant. Raises Ambiguous where a count or an order does not fit."""
    if match := re.fullmatch(r"the (.+) between the (.+) and the (.+)", text):
        noun, one, two = map(parse, match.groups())
        return _between(noun, one, two, things, strict)
    if match := re.fullmatch(r"the (.+) and the (.+)", text):
        left, right = (parse(part).among(things) for part in match.groups())
        if (len(left), len(right)) not in ((0, 0), (1, 1)) or set(left) & set(right):
            raise Ambiguous(text)
        return tuple(sorted(left + right))
    if match := re.fullmatch(r"(the|every) (.+) (left of|right of|above|below) the (.+)", text):
        return _related(match[1], parse(match[2]), match[3], parse(match[4]), things, strict)
    if match := re.fullmatch(r"the (first|second|third) (.+) from the (left|right|top|bottom)", text):
        return _ranked(parse(match[2]).among(things), match[3], RANK[match[1]], things)
    if match := re.fullmatch(r"the (leftmost|rightmost|highest|lowest) (.+)", text):
        return _ranked(parse(match[2]).among(things), SIDE_OF[match[1]], 1, things)
    if match := re.fullmatch(r"the (largest|smallest) (.+)", text):
        return _extreme(parse(match[2]).among(things), match[1], things)
    match = re.fullmatch(r"(the|every|all|one|two|three|everything) ?(.*)", text)
    assert match, text
    phrase = parse(match[2])
    return _counted(match[1], phrase, phrase.among(things))


def _counted(determiner: str, phrase: Phrase, found: list[int]) -> tuple[int, ...]:
    assert phrase.plural == (determiner in ("all", "two", "three") or (determiner == "the" and phrase.plural))
    if determiner in NUMBER:
        fits = len(found) == NUMBER[determiner]
    elif determiner == "the":
        fits = len(found) > 1 if phrase.plural else len(found) == 1
    else:
        fits = True
    if found and not fits:
        raise Ambiguous(f"{determiner}: {len(found)}")
    return tuple(found)


def _related(
    determiner: str, noun: Phrase, relation: str, anchor: Phrase, things: list[SceneObject], strict: bool
) -> tuple[int, ...]:
    anchors = anchor.among(things)
    if len(anchors) > 1:
        raise Ambiguous(f"{len(anchors)} anchors")
    if not anchors:
        return ()
    ax, ay = AXES[SIDE_OF[relation]]
    found = []
    for i in noun.among(things):
        dx, dy = (things[anchors[0]].centre[k] - things[i].centre[k] for k in (0, 1))
        far, aside = dx * ax + dy * ay, abs(dx * ay) + abs(dy * ax)
        if i != anchors[0] and (far > 0.11 and aside <= 0.95 * far if strict else far > -0.02):
            found.append(i)
    return _counted(determiner, Phrase({}, None, False), found)


def _between(phrase: Phrase, one: Phrase, two: Phrase, things: list[SceneObject], strict: bool) -> tuple[int, ...]:
    ends = [one.among(things), two.among(things)]
    if max(map(len, ends)) > 1:
        raise Ambiguous("more than one of an end")
    if not all(ends):
        return ()
    (first,), (last,) = ends
    p, q = (complex(*things[i].centre) for i in (first, last))
    found = []
    for i in phrase.among(things):
        # In units of the line from one end to the other: real part along it, imaginary part aside.
        spot = (complex(*things[i].centre) - p) / (q - p)
        near = 0.24 < spot.real < 0.76 and abs(spot.imag) < 0.21
        if i not in (first, last) and (near if strict else 0 < spot.real < 1 and abs(spot.imag) < 0.5):
            found.append(i)
    return _counted("the", Phrase({}, None, False), found)


def _ranked(found: list[int], side: str, rank: int, things: list[SceneObject]) -> tuple[int, ...]:
    if len(found) < rank:
        return ()
    ax, ay = AXES[side]
    order = sorted((things[i].centre[0] * ax + things[i].centre[1] * ay, i) for i in found)
    place, answer = order[rank - 1]
    if len(found) == 1 or any(abs(place - other) < 0.06 for other, i in order if i != answer):
        raise Ambiguous(f"{len(found)} in order from the {side}")
    return (answer,)


def _extreme(found: list[int], word: str, things: list[SceneObject]) -> tuple[int, ...]:
    if not found:
        return ()
    order = sorted(found, key=lambda i: things[i].radius, reverse=word == "largest")
    radii = [things[i].radius for i in order]
    if len(found) == 1 or max(radii[0] / radii[1], radii[1] / radii[0]) < 1.2:
        raise Ambiguous(f"{radii} for {word}")
    return (order[0],)


def size_classes_apart(things: list[SceneObject]) -> bool:
    """Whether "large" and "small" objects of a scene differ by half at least."""
    pairs = [pair for pair in combinations(things, 2) if pair[0].size != pair[1].size]
    return all(max(a.radius, b.radius) >= 1.5 * min(a.radius, b.radius) for a, b in pairs)
