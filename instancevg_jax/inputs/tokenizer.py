"""BEiT-3's token ids, on sentencepiece alone.

The original reads its sentencepiece model through transformers' XLMRobertaTokenizer. In effect, ids 0 to 3 are `<s>`,
`<pad>`, `</s>` and `<unk>`; the id of every other piece is its sentencepiece id plus one; `<mask>` comes last.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int32

from instancevg_jax.errors import InputError

BOS, PAD, EOS, UNK = 0, 1, 2, 3
_SPECIAL = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
_FIRST_PIECES = ("<unk>", "<s>", "</s>")
_OFFSET = 1  # token id minus sentencepiece id
_LAST_FIELDS = {2, 3}  # trainer_spec and normalizer_spec of a model, which follow the pieces
_WIRE_BYTES = {1: 8, 5: 4}  # protobuf's wire types of fixed size


class Tokenizer:
    """Sentence -> padded token ids. Immutable; build it with `from_file` or `from_bytes`."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, model_bytes: bytes) -> None:
        self._processor = processor
        self._model_bytes = model_bytes
        self._special = {**_SPECIAL, "<mask>": processor.vocab_size() + _OFFSET}
        self._split = re.compile(r"(<s>|<pad>|</s>|<unk>|\s*<mask>)")

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a `.spm` file. Raises InputError if it is missing, truncated, or not in BEiT-3's layout."""
        path = Path(path)
        try:
            if not path.is_file():
                what = "is no file" if path.exists() else "no such file"
                raise InputError(f"{path}: {what}; expected a sentencepiece model")
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if data.startswith(b"version https://git-lfs"):
            raise InputError(f"{path}: a Git LFS pointer; run 'git lfs pull' to download the sentencepiece model")
        tokenizer = cls.from_bytes(data, str(path))
        if _LAST_FIELDS - _fields(data):
            raise InputError(f"{path}: a truncated sentencepiece model, cut after {tokenizer.vocab_size - 2} pieces")
        return tokenizer

    @classmethod
    def from_bytes(cls, data: bytes, source: str) -> "Tokenizer":
        """Like `from_file`, from a file's content, which may be cut after some pieces. `source` names it in errors."""
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
            first = tuple(processor.IdToPiece(i) for i in range(len(_FIRST_PIECES)))
        except (RuntimeError, IndexError) as error:
            raise InputError(f"{source}: not a sentencepiece model, or a truncated one") from error
        if first != _FIRST_PIECES:
            raise InputError(f"{source}: the first pieces are {' '.join(first)}; expected {' '.join(_FIRST_PIECES)}")
        return cls(processor, data)

    @property
    def vocab_size(self) -> int:
        """Number of ids. The largest one is that of `<mask>`."""
        return self._special["<mask>"] + 1

    @property
    def model_bytes(self) -> bytes:
        """The sentencepiece model as it was read, to be stored in a checkpoint."""
        return self._model_bytes

    def encode(self, text: str, max_tokens: int) -> tuple[Int32[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
        """Token ids of a cleaned sentence (see `text.clean_expression`), padded to `max_tokens`, and which are real.

        At most `max_tokens - 2` pieces are kept, between BOS and EOS. Special tokens written in the sentence ("<unk>")
        are taken as such, as in the original's tokenizer. Raises InputError if the sentence has no pieces.
        """
        if max_tokens < 3:
            raise InputError(f"max_tokens is {max_tokens}; expected at least 3, for one piece between BOS and EOS")
        pieces = self._piece_ids(text)[: max_tokens - 2]
        if not pieces:
            raise InputError(f"the expression {text!r} gives no tokens; expected a sentence")
        ids = np.full(max_tokens, PAD, np.int32)
        ids[: len(pieces) + 2] = [BOS, *pieces, EOS]
        return ids, np.arange(max_tokens) < len(pieces) + 2

    def num_pieces(self, text: str) -> int:
        """Number of tokens of a cleaned sentence before it is truncated, without BOS and EOS."""
        return len(self._piece_ids(text))

    def knows(self, text: str) -> bool:
        """Whether a cleaned text has no piece outside the vocabulary (`<unk>`)."""
        return UNK not in self._piece_ids(text)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, without BOS, PAD and EOS. Raises InputError for an id outside the vocabulary."""
        names = {index: name for name, index in self._special.items()}
        pieces = []
        for index in np.asarray(ids).tolist():
            if not 0 <= index < self.vocab_size:
                raise InputError(f"token id {index} is outside the vocabulary of {self.vocab_size}")
            if index not in (BOS, PAD, EOS):
                pieces.append(names.get(index) or self._processor.IdToPiece(index - _OFFSET))
        return "".join(pieces).replace("▁", " ").strip()

    def _piece_ids(self, text: str) -> list[int]:
        """Sentencepiece runs on the text between special tokens; `<mask>` includes the white space before it."""
        ids: list[int] = []
        for part in self._split.split(text):
            special = self._special.get(part.lstrip() if part.endswith("<mask>") else part)
            if special is not None:
                ids.append(special)
            elif part:
                ids.extend(i + _OFFSET if i else UNK for i in self._processor.EncodeAsIds(part))
        return ids


def _fields(data: bytes) -> set[int]:
    """The field numbers at the top level of a protobuf message that is known to be valid."""
    fields, at = set(), 0
    while at < len(data):
        tag, at = _varint(data, at)
        fields.add(tag >> 3)
        kind = tag & 7
        if kind in _WIRE_BYTES:
            at += _WIRE_BYTES[kind]
        elif kind in (0, 2):
            value, at = _varint(data, at)
            at += value if kind == 2 else 0
        else:
            break  # a group, which no sentencepiece model has
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf integer and the position after it."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
