"""Token ids against the original's (F8) and, where transformers is installed, its tokenizer on real text."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import Tokenizer
from tests import oracle


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")


@pytest.mark.parametrize("max_tokens", [50, 20])
def test_ids_equal_the_originals(tokenizer: Tokenizer, max_tokens: int):
    fixture = oracle.fixture("f8_tokenizer")
    compared = 0
    for text, cleaned, ids, mask in zip(
        fixture["strings"], fixture["cleaned"], fixture[f"ids{max_tokens}"], fixture[f"mask{max_tokens}"], strict=True
    ):
        if not str(cleaned).strip():
            continue
        ours, ours_mask = tokenizer.encode(clean_expression(str(text)), max_tokens)
        assert ours.dtype == np.int32
        assert ours_mask.dtype == bool
        np.testing.assert_array_equal(ours, ids, err_msg=str(text))
        np.testing.assert_array_equal(ours_mask, mask == 0, err_msg=str(text))
        compared += 1
    assert compared == len(fixture["strings"]) - 1  # all but "-", of which cleaning leaves nothing


def test_vocabulary_counts_the_mask_token(tokenizer: Tokenizer):
    bos, pad, eos, unk, mask, size, _ = oracle.fixture("f8_tokenizer")["special"].tolist()
    assert tokenizer.vocab_size == size == mask + 1
    assert tokenizer.decode([bos, unk, mask, eos, pad]) == "<unk><mask>"


def test_special_tokens_written_in_a_sentence(tokenizer: Tokenizer):
    mask = tokenizer.vocab_size - 1
    left = tokenizer.encode("left", 8)[0][1]
    for text, expected in [
        ("left <mask>left", [left, mask, left]),
        ("<s>left</s><pad>", [0, left, 2, 1]),
        ("left <unk> left", [left, 3, left]),
        ("left <mask>  <mask>", [left, mask, mask]),
    ]:
        ids, real = tokenizer.encode(text, 8)
        assert ids[real].tolist() == [0, *expected, 2], text


def test_decode_inverts_encode(tokenizer: Tokenizer):
    assert tokenizer.decode(tokenizer.encode("the man on the left", 20)[0]) == "the man on the left"


def test_a_long_sentence_is_cut(tokenizer: Tokenizer):
    ids, real = tokenizer.encode("left " * 100, 12)
    assert real.all()
    assert ids[0] == 0
    assert ids[-1] == 2
    assert len(set(ids[1:-1].tolist())) == 1
    assert tokenizer.num_pieces("left " * 100) == 100


def test_a_sentence_without_tokens_is_an_error(tokenizer: Tokenizer):
    with pytest.raises(InputError, match="gives no tokens"):
        tokenizer.encode(" ", 20)
    with pytest.raises(InputError, match="at least 3"):
        tokenizer.encode("left", 2)
    with pytest.raises(InputError, match="outside the vocabulary"):
        tokenizer.decode([tokenizer.vocab_size])


def test_model_bytes_round_trip(tokenizer: Tokenizer, tmp_path):
    path = tmp_path / "tokenizer.spm"
    path.write_bytes(tokenizer.model_bytes)
    again = Tokenizer.from_file(path)
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode("two dogs", 9)[0], tokenizer.encode("two dogs", 9)[0])


def test_bad_model_files_are_named(tokenizer: Tokenizer, tmp_path):
    path = tmp_path / "bad.spm"
    with pytest.raises(InputError, match=r"bad\.spm: no such file"):
        Tokenizer.from_file(path)
    whole = tokenizer.model_bytes
    for data in (b"", b"not a model", whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"bad\.spm: not a sentencepiece model"):
            Tokenizer.from_file(path)


def pieces_of(model: bytes) -> list[bytes]:
    """The messages that hold the pieces (field 1), which come first."""
    pieces, at = [], 0
    while model[at] == 0x0A:
        assert model[at + 1] < 128
        pieces.append(model[at : at + 2 + model[at + 1]])
        at += len(pieces[-1])
    return pieces


def test_a_model_cut_between_two_pieces_is_refused(tokenizer: Tokenizer, tmp_path):
    """Sentencepiece loads it: every sentence would be spelt from the pieces that are left."""
    pieces, whole = pieces_of(tokenizer.model_bytes), tokenizer.model_bytes
    assert len(pieces) == 110
    path = tmp_path / "cut.spm"
    for count in (20, 110):
        path.write_bytes(b"".join(pieces[:count]))
        assert Tokenizer.from_bytes(path.read_bytes(), "cut").vocab_size == count + 2
        with pytest.raises(InputError, match=rf"cut\.spm: a truncated sentencepiece model, cut after {count} pieces"):
            Tokenizer.from_file(path)
    path.write_bytes(whole)
    Tokenizer.from_file(path)


def test_the_genuine_model_cut_is_refused():
    path = oracle.data("tokenizer/beit3_truncated.spm")
    with pytest.raises(InputError, match="a truncated sentencepiece model, cut after 45233 pieces"):
        Tokenizer.from_file(path)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_end_of_a_model_is_read_or_refused(tail: bytes):
    model = oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes()
    with tempfile.NamedTemporaryFile(suffix=".spm") as file:
        file.write(b"".join(pieces_of(model)[:5]) + tail)
        file.flush()
        with contextlib.suppress(InputError):
            Tokenizer.from_file(file.name)


def test_a_foreign_sentencepiece_model_is_refused(tmp_path):
    """A model of another layout (here LLaMA's order without a <pad>, unk last) would shift every id in silence."""
    sentencepiece = pytest.importorskip("sentencepiece")
    sentences = iter(["the red dog runs to the left of the blue cat"] * 20)
    prefix = str(tmp_path / "foreign")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_prefix=prefix, vocab_size=20, bos_id=0, eos_id=1, unk_id=2, minloglevel=2
    )
    with pytest.raises(
        InputError, match=r"foreign\.model: the first pieces are <s> </s> <unk>; expected <unk> <s> </s>"
    ):
        Tokenizer.from_file(prefix + ".model")


def assert_as_transformers(model: Path, lines: list[str]) -> None:
    """The ids of each line, cleaned, are those of transformers' tokenizer."""
    transformers = pytest.importorskip("transformers")
    theirs, ours = transformers.XLMRobertaTokenizer(str(model)), Tokenizer.from_bytes(model.read_bytes(), str(model))
    assert len(theirs) == ours.vocab_size
    for line in lines:
        text = clean_expression(line)
        expected = theirs.convert_tokens_to_ids(theirs.tokenize(text))[:48]
        ids, real = ours.encode(text, 50)
        assert ids[real].tolist() == [0, *expected, 2], line


def test_fixture_strings_equal_transformers(tmp_path):
    """The strings of F8, unicode and odd white space among them, by its model."""
    fixture = oracle.fixture("f8_tokenizer")
    (tmp_path / "f8.spm").write_bytes(fixture["spm_model_bytes"].tobytes())
    assert_as_transformers(tmp_path / "f8.spm", [str(text) for text in fixture["strings"] if str(text) != "-"])


def test_real_expressions_equal_transformers():
    """Every distinct expression of the RefCOCO validation and test sets, by the genuine (cut) model."""
    lines = oracle.data("expressions.txt").read_text().splitlines()
    assert len(lines) == 33_869
    assert_as_transformers(oracle.data("tokenizer/beit3_truncated.spm"), lines)
