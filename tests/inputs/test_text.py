"""Sentences: what the original's cleaning gives for plain ones, and no `<unk>` from the way a sentence was typed or copied."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression, unknown_words
from instancevg_jax.inputs.tokenizer import UNK, Tokenizer
from tests import oracle

SHAPES = Tokenizer.from_file(TOKENIZER_PATH)
# the F8 strings with white space or letters in forms that the original passes on
FOLDED = {"a\tb\nc": "a b c", "\ufb01ne ½ x²": "fine ½ x²", "\uff13 people": "3 people"}


def original_cleaning(text: str) -> str:
    """`clean_string` of the original."""
    for mark in ".,'!?\"()*#:;":
        text = text.replace(mark, "")
    return text.lower().replace("-", " ").replace("/", " ")


def test_cleaning_equals_the_originals():
    fixture = oracle.fixture("f8_tokenizer")
    pairs = {str(t): str(c) for t, c in zip(fixture["strings"], fixture["cleaned"], strict=True) if str(c).strip()}
    assert len(pairs) == 18
    assert {text: clean_expression(text) for text in pairs} == pairs | FOLDED


def test_every_real_sentence_stays_as_the_original_cleans_it():
    lines = oracle.data("expressions.txt").read_text("utf-8").split("\n")[:-1]
    assert len(lines) == 33_869
    assert [clean_expression(line) for line in lines] == [original_cleaning(line) for line in lines]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_printable_ascii_is_cleaned_as_by_the_original(text: str):
    if original_cleaning(text).strip():
        assert clean_expression(text) == original_cleaning(text)


@pytest.mark.parametrize(
    "text",
    [
        "the red square\n",
        "\ufeffthe red square\r\n",
        "the\u00a0red\u2009square\u3000",
        "the red\tsquare\v\f",
        "the\u2028red\u2029square\x85",
        "the\u200bred square\u200b",
        "\u200ethe red\u202c squ\u2060are\u200d",
        "the red squ\u00adare\x00\x1b\x7f",
        "the red\ufe0f square\ufe0e",
        "\u2018the\u2019 \u201cred\u201d \u00absquare\u00bb",
        "the red\u2013square",
        "the\u2014red\u2212square\u2010",
        "the red square\u3002",
        "the red\uff0csquare\uff01",
        "\u300cthe red square\u300d\uff1f",
        "\uff08the red square\uff09\uff1a",
        "the red\u2026square\u2026",
        "\u2022 the red square",
        "\u00bfthe red square\u061f",
        "\uff34\uff48\uff45 \uff32\uff45\uff44 \uff53\uff51\uff55\uff41\uff52\uff45",
        "\U0001d42d\U0001d421\U0001d41e red square",
    ],
    ids=ascii,
)
def test_the_way_a_sentence_is_typed_does_not_change_its_tokens(text: str):
    expected, _ = SHAPES.encode("the red square", 8)
    np.testing.assert_array_equal(SHAPES.encode(clean_expression(text), 8)[0], expected)
    assert UNK not in expected
    assert unknown_words(SHAPES, text) == ()


@given(st.text(min_size=1))
def test_cleaned_text_is_clean(text: str):
    try:
        cleaned = clean_expression(text)
    except InputError:
        return
    for character in cleaned:
        assert character == " " or not character.isspace()
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs")
        assert character.isascii() or not unicodedata.category(character).startswith("P")


def test_accents_are_composed():
    assert clean_expression("cafe\u0301") == clean_expression("caf\u00e9") == "caf\u00e9"


def test_apostrophes_are_removed_and_marks_between_words_are_spaces():
    assert clean_expression("the man\u2019s hat") == clean_expression("the man's hat") == "the mans hat"
    assert clean_expression("left\uff0cright\u3001top\u30fbend\u2026") == "left right top end "


def test_other_scripts_symbols_and_emoji_pass():
    assert clean_expression("左边的人") == "左边的人"
    assert clean_expression("The 🐶, left!") == "the 🐶 left"
    assert clean_expression("player ` gibson \u00b4 & ½") == "player ` gibson \u00b4 & ½"


def test_unknown_words_are_listed_once_in_order():
    assert unknown_words(SHAPES, "The zebra, left of the RED zebra-crossing 🐶!") == ("zebra", "crossing", "🐶")
    assert unknown_words(SHAPES, "the red square") == ()


@pytest.mark.parametrize("text", ["", "  \t\n", "-", "?!...", "/-/ #", "\ufeff\u200b", "\u3002\u3000\u2014", "\x00"])
def test_a_sentence_of_nothing_is_an_error(text: str):
    with pytest.raises(InputError, match="contains no words"):
        clean_expression(text)


def test_a_sentence_that_is_not_utf8_is_an_error():
    with pytest.raises(InputError, match=r"the expression '\\udcffred' is not valid UTF-8"):
        clean_expression("\udcffred")


@pytest.mark.parametrize("wrong", [None, 5, b"the red square", ["the red square"]])
def test_what_is_no_string_is_an_error(wrong):
    with pytest.raises(InputError, match=r"the expression is .*; expected a string"):
        clean_expression(wrong)
