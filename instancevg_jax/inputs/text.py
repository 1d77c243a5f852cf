"""Cleans sentences for the tokenizer: one path for training, evaluation and prediction.

Source: `clean_string` in instancevg/datasets/pipelines/loading.py of the original, which knows ASCII only.
"""

import re
import unicodedata

from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer

_REMOVED = re.compile(r"[.,'!?\"()*#:;]")
_TO_SPACE = re.compile("[-/]")
_SAME_AS = {  # characters that stand for an ASCII one or for a space, which their Unicode category does not tell
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u2035\u02b9\u02bb\u02bc\u02bd\uff07", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u2036\u301d\u301e\u301f\uff02", '"'),
    **dict.fromkeys("\u2212\u2044\u2215", " "),  # minus, fraction slash, division slash
    **dict.fromkeys("\u200b\u2800\u3164\uffa0", " "),  # zero-width space, blank letters
}
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # not in Cf
_FORMS = ("<wide>", "<narrow>", "<font>")  # decompositions that keep the letter and change its looks
_LIGATURES = "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"  # ff, fi, fl, ffi, ffl, st, st


def clean_expression(text: str) -> str:
    """Lower case, without ``. , ' ! ? " ( ) * # : ;``, and with ``-``, ``/`` and white space as spaces.

    On ASCII text without control characters this is the original's cleaning, to the letter. Everything else is first
    brought to what the tokenizer was trained on: NFC; any white space, line end and zero-width space becomes a space;
    control, format (byte order mark, joiners, direction marks) and other invisible characters are removed; typographic
    quotes and apostrophes are treated as their ASCII form, dashes and all other non-ASCII punctuation as spaces;
    full-width, half-width and mathematical forms and ligatures become plain letters. Spaces are neither stripped nor
    merged: sentencepiece does that.

    Raises:
        InputError: `text` is not a string, has no words, or is not valid Unicode (bytes that are not UTF-8, as a command
            line passes them on).
    """
    if not isinstance(text, str):
        raise InputError(
            f"the expression is {text!r} ({type(text).__name__}); expected a string such as 'the red circle'"
        )
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"the expression {text!r} is not valid UTF-8; expected a sentence such as 'the red circle'")
    cleaned = _REMOVED.sub("", _plain(text).lower())
    cleaned = _TO_SPACE.sub(" ", cleaned)
    if not cleaned.strip():
        raise InputError(f"the expression {text!r} contains no words; expected a sentence such as 'the red circle'")
    return cleaned


def unknown_words(tokenizer: Tokenizer, text: str) -> tuple[str, ...]:
    """The words of a sentence that become, or contain, `<unk>`: cleaned, each once, in order.

    Args:
        tokenizer: the checkpoint's or data set's tokenizer.
        text: a sentence, cleaned or not. Raises InputError as `clean_expression` does.
    """
    words = dict.fromkeys(clean_expression(text).split())
    return tuple(word for word in words if not tokenizer.knows(word))


def _plain(text: str) -> str:
    """Without characters that only look different, or not at all, from what the tokenizer knows."""
    if text.isascii() and text.isprintable():
        return text
    return unicodedata.normalize("NFC", "".join(map(_plain_character, _INVISIBLE.sub("", text))))


def _plain_character(character: str) -> str:
    category = unicodedata.category(character)
    if character in _SAME_AS:
        return _SAME_AS[character]
    if character.isspace():
        return " "
    if category in ("Cc", "Cf"):
        return ""
    if character.isascii():
        return character
    plain = character
    if character in _LIGATURES or unicodedata.decomposition(character).startswith(_FORMS):
        plain = unicodedata.normalize("NFKC", character)
    if plain.isascii():  # no space follows a full-width comma, so it becomes one where an ASCII comma is removed
        return " " if _REMOVED.fullmatch(plain) or _TO_SPACE.fullmatch(plain) else plain
    return " " if category.startswith("P") else plain
