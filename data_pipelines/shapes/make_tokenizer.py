"""Rebuild the sentencepiece model of the embedded data set: `python -m data_pipelines.shapes.make_tokenizer [FILE]`.

A word model over the grammar's vocabulary, one piece a word, in BEiT-3's layout (<unk>, <s>, </s> first; a token's id
is its piece's plus one). Needed only after the words of shapes_language.py change; a checkpoint trained with the old
file keeps its own.
"""

import argparse
import io
import os
from pathlib import Path

import sentencepiece

from data_pipelines.shapes.dataset import TOKENIZER_PATH
from data_pipelines.shapes.language import vocabulary


def build() -> bytes:
    """The serialized model. The pieces are in alphabetical order: every word is given a frequency of its own."""
    words = vocabulary()
    sentences = [" ".join(words[: i + 1]) for i in range(len(words))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="word",
        vocab_size=len(words) + 3,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    """Write the model, to a temporary name first."""
    parser = argparse.ArgumentParser(description="Rebuild the sentencepiece model of the embedded data set.")
    parser.add_argument("file", nargs="?", type=Path, default=TOKENIZER_PATH, help="where to write it")
    target: Path = parser.parse_args().file
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_bytes(build())
    os.replace(temporary, target)
    print(f"wrote {target}: {len(vocabulary())} words, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
