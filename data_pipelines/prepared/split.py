"""A prepared data set of referring expressions as a split."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.cache import PictureCache
from data_pipelines.masks import decode
from data_pipelines.prepared.sources import Prepared
from data_pipelines.records import Record, is_training, select
from data_pipelines.split import Description, Guess, Sample
from data_pipelines.transforms import Alternatives, Example, Transform, box_of, mask_of, truth_of
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import decode_picture
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime.sharding import is_first_process
from instancevg_jax.types import Batch


@dataclass(frozen=True)
class ReferringSplit:
    """The first `length` items of a split of a prepared data set."""

    source: Prepared
    make: Transform
    length: int

    @property
    def drawn(self) -> bool:
        """In training splits a sentence, and one record of a group, is drawn."""
        return is_training(self.source.split)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Alternatives:
        return self.source[index]

    def transform(self, item: Alternatives, rng: np.random.Generator) -> Example:
        """Read, resize, tokenize: see `Transform`."""
        return self.make(item, rng)

    def stack(self, examples: Sequence[Example]) -> Batch:
        """See `transforms.stack`."""
        return self.make.stack(examples)

    def name(self, item: int) -> str:
        """The ids of the record, or of the records of which one was drawn, and their pictures."""
        records = [self.source.record(position) for position in self.source[item].positions]
        return ", ".join(f"{record.id} ({record.picture})" for record in records)

    def describe(self, record: int) -> Description:
        """Tags: `kind`, whether none, one or many objects are targets."""
        found = self._record(record)
        targets = tuple(instance.id for instance in select(found, self.make.protocol).objects)
        kind = "none" if not targets else "single" if len(targets) == 1 else "multi"
        return Description(
            found.id, found.picture, found.height, found.width, found.expressions[0], targets, {"kind": kind}
        )

    def group(self, record: int) -> int:
        """Groups are numbered in the order of the file."""
        return self._groups.get(self._record(record).group, -1)

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """The targets before they are resized."""
        return truth_of(self._record(record), self.make.protocol)

    def show(self, record: int) -> Sample:
        """The record with its picture at its own size."""
        found, read = self.source.load(self.source[record].positions[0])
        height, width = found.height, found.width
        objects, _ = select(found, self.make.protocol)
        masks = [decode(mask_of(instance, height, width)).astype(bool) for instance in objects]
        boxes = [box_of(instance, height, width) for instance in objects]
        return Sample(
            decode_picture(read(), found.picture),
            found.expressions[0],
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(masks, bool).reshape(-1, height, width),
        )

    def guesses(self, record: int) -> dict[str, Guess]:
        """There are no baselines."""
        del record
        return {}

    @functools.cached_property
    def _groups(self) -> dict[str, int]:
        names = (self._record(record).group for record in range(self.length))
        return {name: number for number, name in enumerate(dict.fromkeys(names)) if name}

    def _record(self, record: int) -> Record:
        """The record; of several, which only training splits have, the first."""
        return self.source.record(self.source[record].positions[0])


def open_referring(config: Config, split: str, tokenizer: Tokenizer, length: int) -> ReferringSplit:
    """`length` > 0: the first items only; 0: all. Warns of a training split in which no record has an object.

    Raises InputError if the data set or the split does not exist, and for records that the protocol or the task cannot use.
    """
    model, data = config.model, config.data
    height, width = model.image_height, model.image_width
    source = Prepared(data.data_dir, data.name, split)
    _check_use(source, config)
    _warn_of_nothing(source, config.eval.protocol)
    cache = _cache(data.picture_cache_mb * 10**6, source.digest, height, width) if data.picture_cache_mb else None
    make = Transform(tokenizer, height, width, model.max_tokens, data.max_targets, config.eval.protocol, cache)
    return ReferringSplit(source, make, min(length or len(source), len(source)))


def _check_use(source: Prepared, config: Config) -> None:
    """The original's families are read as it reads them, whatever they contain; other data must fit the protocol."""
    if config.data.name == "custom" and config.eval.protocol == "official" and source.partial:
        raise InputError(
            f"{source.split}: record {source.partial} has an object with only a box or only a mask; the official protocol "
            "would drop it and the objects after it: expected eval.protocol 'strict'"
        )
    if config.eval.task == "rrefcoco" and not is_training(source.split) and source.ungrouped:
        raise InputError(
            f"{source.split}: record {source.ungrouped} has no group, which the metrics of eval.task 'rrefcoco' need; "
            "prepare the data with an instance_index.json next to the annotations that covers the split"
        )


def _warn_of_nothing(source: Prepared, protocol: str) -> None:
    if is_training(source.split) and source.with_objects.get(protocol) == 0 and is_first_process():
        print(
            f"warning: {source.split}: no record has an object under eval.protocol={protocol}; a model learns from it that "
            "nothing is ever meant",
            file=sys.stderr,
        )


@functools.lru_cache(maxsize=1)
def _cache(max_bytes: int, digest: str, height: int, width: int) -> PictureCache:
    """The cache of this process, shared by training and evaluation; a new one for other pictures or another size."""
    del digest, height, width
    return PictureCache(max_bytes)
