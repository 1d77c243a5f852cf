"""What the embedded data set's sentences mean, and that the words alone do not tell."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize, sparse

from data_pipelines.shapes.dataset import (
    HELD_OUT_PAIRS,
    LEVELS,
    MAX_TOKENS,
    SPLITS,
    TOKENIZER_PATH,
    Scene,
    SceneObject,
    ShapesDataset,
)
from data_pipelines.shapes.language import TEMPLATES, Expression, Noun, resolve, vocabulary
from data_pipelines.shapes.make_tokenizer import build
from instancevg_jax.inputs.tokenizer import UNK, Tokenizer
from tests.data_pipelines.shapes.solver import Ambiguous, size_classes_apart, solve

COUNTS = {"basic": (2, 4), "full": (3, 8), "outlines": (2, 4)}


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    """8,000 examples of every level, without pictures."""
    return [ShapesDataset("train", level).describe(i) for level in LEVELS for i in range(8_000)]


def thing(colour: str, shape: str, x: float, y: float, radius: float = 0.1) -> SceneObject:
    return SceneObject(colour, shape, "small" if radius < 0.14 else "large", "plain", (x, y), radius)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("split", SPLITS)
def test_independent_solver_agrees(split: str, level: str) -> None:
    dataset = ShapesDataset(split, level)
    templates = Counter()
    for index in range(3000 if split == "train" else 1000):
        about = dataset.describe(index)
        things = list(about.objects)
        templates[about.template] += 1
        for strict in (True, False):
            assert solve(about.expression, things, strict) == about.referents, (index, about)
        assert about.kind == ("none", "single", "multi")[min(len(about.referents), 2)]
        assert COUNTS[level][0] <= len(things) <= COUNTS[level][1]
        assert size_classes_apart(things)
    assert set(templates) == set(TEMPLATES[level]) - ({"everything"} if split == "heldout" else set())


@pytest.mark.parametrize("level", LEVELS)
def test_answers_survive_small_moves(level: str) -> None:
    """No answer hangs on a hair: objects moved by 1 % and scaled by 3 % still give the same answer."""
    rng = np.random.default_rng(0)
    dataset = ShapesDataset("val", level)
    for index in range(1500):
        about = dataset.describe(index)
        moved = []
        for item in about.objects:
            dx, dy, ds = rng.uniform(-1, 1, 3) * (0.01, 0.01, 0.03)
            moved.append(
                replace(item, centre=(item.centre[0] + dx, item.centre[1] + dy), radius=item.radius * (1 + ds))
            )
        for strict in (True, False):
            assert solve(about.expression, moved, strict) == about.referents, (index, about)


def test_answers_hold_for_what_can_be_seen() -> None:
    """A partly hidden object seems to lie elsewhere: with the centres of the visible boxes all answers stay the same."""
    dataset, size = ShapesDataset("val", "full"), 96
    seen = 0
    for index in range(800):
        if dataset.describe(index).template not in ("relation", "superlative", "ordinal", "between"):
            continue
        example = dataset[index]
        middles = (example.boxes_xyxy[:, :2] + example.boxes_xyxy[:, 2:]) / (2 * size)
        shown = [replace(item, centre=tuple(xy)) for item, xy in zip(example.objects, middles.tolist(), strict=True)]
        for strict in (True, False):
            assert solve(example.expression, shown, strict) == example.referents, (index, example.expression)
        seen += 1
    assert seen > 200


def test_solver_finds_faults() -> None:
    """The solver of the tests refuses what is ambiguous, so that its agreement means something."""
    red, other, blue = (
        thing("red", "circle", 0.2, 0.5),
        thing("red", "circle", 0.23, 0.8),
        thing("blue", "star", 0.8, 0.5),
    )
    for text in (
        "the red circle",
        "three red circles",
        "the leftmost circle",
        "the largest circle",
        "the first star from the top",
    ):
        with pytest.raises(Ambiguous):
            solve(text, [red, other, blue], strict=True)
    with pytest.raises(Ambiguous):
        solve("the red circle and the blue heart", [red, blue], strict=True)
    assert solve("the red circle left of the blue star", [red, blue], strict=True) == (0,)
    assert solve("the red circle above the blue star", [other, blue], strict=False) == ()
    askew = thing("red", "circle", 0.75, 0.1)
    assert solve("the red circle left of the blue star", [askew, blue], strict=True) == ()
    assert solve("the red circle left of the blue star", [askew, blue], strict=False) == (0,)


def test_resolve_refuses_ambiguous_scenes() -> None:
    red, other, blue = (
        thing("red", "circle", 0.2, 0.5),
        thing("red", "circle", 0.23, 0.8),
        thing("blue", "star", 0.8, 0.5),
    )
    noun = Noun(colour="red", shape="circle")
    scene = (red, other, blue)
    assert resolve(Expression("the", "the red circle", ("single",), noun), scene) is None
    assert resolve(Expression("the", "the red circle", ("single",), noun), (red, blue)) == (0,)
    assert resolve(Expression("plural", "the red circles", ("multi",), noun), scene) == (0, 1)
    assert resolve(Expression("plural", "the red circles", ("multi",), noun), (red, blue)) is None
    assert resolve(Expression("number", "three red circles", ("multi",), noun, number=3), scene) is None
    assert resolve(Expression("number", "three red circles", ("multi",), noun, number=3), (blue,)) == ()
    assert (
        resolve(Expression("superlative", "the leftmost red circle", ("single",), noun, order="leftmost"), scene)
        is None
    )
    lowest = Expression("superlative", "the lowest red circle", ("single",), noun, order="lowest")
    assert resolve(lowest, scene) == (1,)
    star = Noun(colour="blue", shape="star")
    left = Expression("relation", "the red circle left of the blue star", ("single",), noun, 0, (star,), "left of")
    assert resolve(left, (red, blue)) == (0,)
    assert resolve(left, (thing("red", "circle", 0.75, 0.1), blue)) is None


def test_none_is_as_likely_for_every_word_and_template(drawn: list[Scene]) -> None:
    """P(none) is 1/3 whatever is said: no word, template, length or number of objects is off by more than chance allows."""
    counts: dict[str, Counter] = {}
    for about in drawn:
        words = about.expression.split()
        features = {*words, f"template {about.template}", f"length {len(words)}", f"objects {len(about.objects)}"}
        for feature in features | {f"attributes {about.attributes}"}:
            counts.setdefault(feature, Counter())[about.kind] += 1
    assert len(counts) > 80
    for feature, kinds in counts.items():
        total = kinds.total()
        z = (kinds["none"] - total / 3) / np.sqrt(total * 2 / 9)
        assert abs(z) < 4.5, (feature, kinds)


def test_single_and_multi_are_balanced_where_both_can_be(drawn: list[Scene]) -> None:
    kinds = Counter()
    for about in drawn:
        if about.template in ("everything", "every"):
            kinds[about.template, about.kind] += 1
        elif re.match("every .* (left of|right of|above|below) the", about.expression):
            kinds["every relation", about.kind] += 1
    for form in ("everything", "every", "every relation"):
        single, multi = kinds[form, "single"], kinds[form, "multi"]
        assert abs(single - multi) < 4.5 * np.sqrt(single + multi), kinds


def held_out_accuracy(expressions: list[str], labels: np.ndarray) -> tuple[float, float]:
    """Accuracy of a logistic regression on words and word pairs on the last third of the data; and of the majority."""
    ids: dict[str, int] = {}
    rows, columns = [], []
    for row, text in enumerate(expressions):
        words = text.split()
        for feature in {*words, *map(" ".join, pairwise(words))}:
            rows.append(row)
            columns.append(ids.setdefault(feature, len(ids)))
    features = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(expressions), len(ids)))
    fitted = 2 * len(expressions) // 3
    known, signs = features[:fitted], 2.0 * labels[:fitted] - 1

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (known @ weights[:-1] + weights[-1])
        slope = -signs / (1 + np.exp(np.clip(margins, -500, 500)))
        loss = np.logaddexp(0, -margins).sum() + 0.5 * weights[:-1] @ weights[:-1]
        return loss, np.append(known.T @ slope + weights[:-1], slope.sum())

    weights = optimize.minimize(objective, np.zeros(len(ids) + 1), jac=True, method="L-BFGS-B").x
    guesses = features[fitted:] @ weights[:-1] + weights[-1] > 0
    unseen = labels[fitted:]
    return float((guesses == unseen).mean()), float(max(unseen.mean(), 1 - unseen.mean()))


def test_language_alone_cannot_tell_none_from_some(drawn: list[Scene]) -> None:
    order = np.random.default_rng(0).permutation(len(drawn))
    expressions = [drawn[i].expression for i in order]
    none = np.array([drawn[i].kind == "none" for i in order])
    accuracy, majority = held_out_accuracy(expressions, none)
    noise = np.sqrt(majority * (1 - majority) / (len(order) // 3))
    assert accuracy < majority + 3 * noise, (accuracy, majority)
    # The same classifier finds what language does tell (two or more objects), and a shortcut as small as one word's.
    multi = np.array([drawn[i].kind == "multi" for i in order])
    accuracy, majority = held_out_accuracy(expressions, multi)
    assert accuracy > majority + 10 * noise, (accuracy, majority)
    leaky = none & np.array(["thing" not in text for text in expressions])
    leaky |= np.array(["thing" in text for text in expressions])
    accuracy, majority = held_out_accuracy(expressions, leaky)
    assert accuracy > majority + 10 * noise, (accuracy, majority)


def pairs_named(text: str) -> set[tuple[str, str]]:
    """(colour, shape) pairs that a sentence brings together in one noun phrase."""
    pairs = set()
    for phrase in re.split(r" (?:left of|right of|above|below|between|and|from) ", text):
        words = [re.sub(r"(?<=ss)es$|(?<!s)s$", "", word) for word in phrase.split()]
        colours = [word for word in words if any(word == colour for colour, _ in HELD_OUT_PAIRS)]
        shapes = [word for word in words if any(word == shape for _, shape in HELD_OUT_PAIRS)]
        pairs |= {(colour, shape) for colour in colours for shape in shapes}
    return pairs


@pytest.mark.parametrize("level", LEVELS)
def test_held_out_pairs_are_held_out(level: str) -> None:
    assert pairs_named("the red crosses left of the cyan cross") == {("red", "cross"), ("cyan", "cross")}
    assert pairs_named("the circle that is not red") == {("red", "circle")}
    for split in ("train", "val", "test"):
        dataset = ShapesDataset(split, level)
        for index in range(1000 if split == "train" else 500):
            about = dataset.describe(index)
            assert not pairs_named(about.expression) & HELD_OUT_PAIRS, about.expression
            assert not {(item.colour, item.shape) for item in about.objects} & HELD_OUT_PAIRS
    subjects = Counter()
    for index in range(1000):
        about = ShapesDataset("heldout", level).describe(index)
        named = pairs_named(about.expression) & HELD_OUT_PAIRS
        assert named, about.expression
        subjects.update(named)
        meant = {(about.objects[i].colour, about.objects[i].shape) for i in about.referents}
        assert not meant or meant & HELD_OUT_PAIRS, about
    assert set(subjects) == HELD_OUT_PAIRS


def test_every_word_is_one_piece() -> None:
    tokenizer = Tokenizer.from_file(TOKENIZER_PATH)
    words = vocabulary()
    ids = [tokenizer.encode(word, 8) for word in words]
    assert all(mask.sum() == 3 for _, mask in ids)
    pieces = {int(row[1]) for row, _ in ids}
    assert len(pieces) == len(words)
    assert UNK not in pieces
    assert tokenizer.vocab_size == len(words) + 5  # <s>, <pad>, </s>, <unk>, <mask>
    rebuilt = Tokenizer.from_bytes(build(), "rebuilt")
    assert all((rebuilt.encode(word, 8)[0] == row).all() for word, (row, _) in zip(words, ids, strict=True))


def test_sentences_use_the_vocabulary_and_fit(drawn: list[Scene]) -> None:
    used = {word for about in drawn for word in about.expression.split()}
    assert used == set(vocabulary())
    assert max(len(about.expression.split()) for about in drawn) + 2 <= MAX_TOKENS
