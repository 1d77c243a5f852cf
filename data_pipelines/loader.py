"""Batches from any random-access source, by Grain: deterministic, resumable, sharded by process, every item once per epoch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import grain
import numpy as np

from instancevg_jax.errors import InputError
from instancevg_jax.types import Batch

MakeExample = Callable[[Any, np.random.Generator], Any]  # item -> a dataclass with `example_weight` and `item`
Stack = Callable[[Sequence[Any]], Batch]  # examples -> their batch
_WITHOUT_END = 2**62  # items; Grain's own number for infinite overflows in batches of one
_BATCHES_AHEAD = 2


class Source(Protocol):
    """Anything with a length and items: a list, `sources.Folder`, `split.Split`. Items should be cheap to get."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def batches(
    source: Source,
    transform: MakeExample,
    batch_size: int,
    seed: int,
    shuffle: bool,
    num_epochs: int | None,
    num_workers: int,
    shard_index: int = 0,
    shard_count: int = 1,
    *,
    stack: Stack,
) -> grain.DatasetIterator[Batch]:
    """Batches of `batch_size` examples for this shard.

    The order depends on `seed` alone, not on the number of workers and shards: it is shuffled anew for each epoch, and
    shard s takes items s, s + shard_count, ... Batches may span epochs. The last one is filled up with copies of the
    first item at `example_weight` 0, so that all shards give the same number of batches of the same shape.
    Unshuffled, row r of this shard's batch k is item (k * batch_size + r) * shard_count + shard_index of the source.

    Args:
        source: the items.
        transform: makes an example of an item. Its random generator depends on the seed and the item's position in the
            stream.
        batch_size: examples per batch of this shard.
        seed: of the order and of the transform's generators.
        shuffle: whether each epoch has a new order, or the source's.
        num_epochs: passes over the source. None: no end.
        num_workers: threads, each of which makes a batch. Threads suffice because OpenCV releases Python's lock.
        shard_index: which shard, usually `jax.process_index()`.
        shard_count: how many there are, usually `jax.process_count()`.
        stack: makes the batch of its examples.

    Returns:
        An iterator of numpy `Batch`es, with `get_state()` and `set_state(state)` to resume in the middle of an epoch.

    Raises:
        InputError: the source is empty; while iterating, whatever the transform raises.
    """
    if not len(source):
        raise InputError("the split has no records; expected at least one")
    items = grain.MapDataset.source(_Weighted(source, 1.0, len(source))).seed(seed)
    if shuffle:
        items = items.shuffle()
    items = items.repeat(num_epochs or _WITHOUT_END // len(source))
    missing = 0 if num_epochs is None else -len(source) * num_epochs % (batch_size * shard_count)
    if missing:
        filling = grain.MapDataset.source(_Weighted(source, 0.0, missing))
        items = grain.MapDataset.concatenate([items, filling])
    examples = items.random_map(_WeightedTransform(transform))[shard_index::shard_count].batch(
        batch_size, batch_fn=stack
    )
    reading = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=num_workers + _BATCHES_AHEAD)
    return iter(examples.to_iter_dataset(reading))


class _Weighted:
    """Items with a weight and their number. At weight 0, every item is the first one."""

    def __init__(self, source: Source, weight: float, length: int) -> None:
        self._source, self._weight, self._length = source, weight, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, float, int]:
        index = index if self._weight else 0
        return self._source[index], self._weight, index


class _WeightedTransform:
    """The transform, on an item with its weight and number."""

    def __init__(self, transform: MakeExample) -> None:
        self._transform = transform

    def __call__(self, numbered: tuple[Any, float, int], rng: np.random.Generator) -> Any:
        item, weight, number = numbered
        return replace(self._transform(item, rng), example_weight=np.float32(weight), item=np.int32(number))
