"""Rebuild the sentencepiece model of the embedded data set: `python -m data_pipelines.shapes.make_tokenizer [FILE]`.

A word model over the grammar's vocabulary, one piece per word, in BEiT-3's layout (<unk>, <s>, </s> first; a token's id is
its piece's id plus one). Needed only after the words of language.py change; checkpoints keep the model they were
trained with.
"""

import argparse
import io
from pathlib import Path

import sentencepiece

from data_pipelines.shapes.dataset import TOKENIZER_PATH
from data_pipelines.shapes.language import vocabulary
from instancevg_jax.files import write_atomically


def build() -> bytes:
    """The serialized model. Each word gets a frequency of its own, so that the pieces are in alphabetical order."""
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
    """The command."""
    parser = argparse.ArgumentParser(description="Rebuild the sentencepiece model of the embedded data set.")
    parser.add_argument("file", nargs="?", type=Path, default=TOKENIZER_PATH, help="the file to write")
    target: Path = parser.parse_args().file
    write_atomically(target, build())
    print(f"wrote {target}: {len(vocabulary())} words, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
