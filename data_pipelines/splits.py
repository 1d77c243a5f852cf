"""Which data sets exist, and how a config's splits are opened and made into batches."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grain
import jax

from data_pipelines import loader
from data_pipelines.prepared.builders import FAMILIES
from data_pipelines.prepared.split import open_referring
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from data_pipelines.shapes.split import open_shapes
from data_pipelines.split import ENDLESS, Description, Guess, Sample, Split
from instancevg_jax.config import EMBEDDED, Config
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch

__all__ = [
    "DATA_SETS",
    "ENDLESS",
    "DataSet",
    "Description",
    "Guess",
    "Sample",
    "Split",
    "load_tokenizer",
    "open_split",
    "train_batches",
]


@dataclass(frozen=True)
class DataSet:
    """How a data set is opened."""

    open: Callable[[Config, str, Tokenizer, int], Split]  # config, split, tokenizer, length (0: all)
    tokenizer: Path | None = None  # its own, where it has one


DATA_SETS = {  # by data.name
    EMBEDDED: DataSet(open_shapes, TOKENIZER_PATH),
    **dict.fromkeys(FAMILIES, DataSet(open_referring)),
}


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the config names; if it names none, the data set's own."""
    path = config.data.tokenizer or _data_set(config).tokenizer
    if not path:
        raise InputError(
            f"data.tokenizer is empty; {config.data.name!r} needs the path of a sentencepiece model such as beit3.spm"
        )
    return Tokenizer.from_file(path)


def open_split(config: Config, split: str, tokenizer: Tokenizer, *, length: int = 0) -> Split:
    """Open a split of the config's data set.

    Args:
        config: `config.eval.protocol` decides which objects of a record count, in training as in evaluation.
        split: the split's name.
        tokenizer: for the sentences.
        length: the number of items to keep, from the first on. 0: all. The embedded data is infinite without a length.

    Raises:
        InputError: the data set or the split does not exist, or has records that the protocol or the task cannot use.
    """
    return _data_set(config).open(config, split, tokenizer, length)


def train_batches(config: Config, source: Split) -> grain.DatasetIterator[Batch]:
    """This process's share of every global training batch of `source`, without end; has `get_state` and `set_state`."""
    return loader.batches(
        source,
        source.transform,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.train.seed,
        shuffle=len(source) != ENDLESS,
        num_epochs=None,
        num_workers=config.data.num_workers,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        stack=source.stack,
    )


def _data_set(config: Config) -> DataSet:
    if config.data.name not in DATA_SETS:
        raise InputError(f"data.name is {config.data.name!r}; expected one of {', '.join(DATA_SETS)}")
    return DATA_SETS[config.data.name]
