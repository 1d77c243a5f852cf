"""Batches from any random-access source, by Grain: deterministic, resumable, sharded by process, every item once an epoch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from instancevg_jax.errors import InputError
from instancevg_jax.types import Batch

# one item -> one example, a dataclass with an `example_weight`: a Batch without the batch dimension, or what `stack` takes
Transform = Callable[[Any, np.random.Generator], Any]
_WITHOUT_END = 2**62  # items; what Grain takes for infinite overflows in batches of one
_BATCHES_AHEAD = 2


def stack_arrays(examples: Sequence[Batch]) -> Batch:
    """The batch of examples that have its shapes already."""
    return jax.tree.map(lambda *rows: np.stack(rows), *examples)


class Source(Protocol):
    """Anything with a length and items: a list, `sources.Folder`, `sources.Prepared`. Items should be cheap to get."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    seed: int,
    shuffle: bool,
    num_epochs: int | None,
    num_workers: int,
    shard_index: int = 0,
    shard_count: int = 1,
    num_processes: int = 0,
    stack: Callable[[Sequence[Any]], Batch] = stack_arrays,
) -> grain.DatasetIterator[Batch]:
    """Batches of `batch_size` examples for this shard.

    The order is a function of `seed` alone: shuffled anew each epoch, the same whatever the number of workers and shards,
    of which shard s takes items s, s + shard_count, ... Batches run on across epochs. What the last one lacks is filled
    with the first item at `example_weight` 0, so that all shards give equally many batches of one shape.
    Unshuffled, row r of this shard's batch k is item (k * batch_size + r) * shard_count + shard_index of the source.

    Args:
        source: the items; `transform` does the work on them.
        transform: makes an example; its generator is a function of the seed and the item's position in the stream.
        batch_size: examples a batch, of this shard alone.
        seed: of the order and of the transform's draws.
        shuffle: a new order each epoch, or the source's.
        num_epochs: passes over the source; None goes on forever.
        num_workers: threads, each at work on a batch. OpenCV works outside Python's lock, so threads are a good choice.
        shard_index: which shard, usually `jax.process_index()`.
        shard_count: how many there are, usually `jax.process_count()`.
        num_processes: > 0 adds worker processes of `num_workers` threads each, for machines where the lock is the limit;
            source and transform are then pickled, and the main module needs its `if __name__ == "__main__"`.
        stack: makes the batch of its examples.

    Returns:
        An iterator of numpy `Batch`es, with `get_state()` and `set_state(state)` to go on in the middle of an epoch.

    Raises:
        InputError: an empty source, or sizes out of range; while iterating, whatever the transform raises.
    """
    _check(source, batch_size, num_epochs, num_workers, num_processes)
    if not 0 <= shard_index < shard_count:
        raise InputError(f"shard_index is {shard_index}; expected 0 to {shard_count - 1}, below shard_count")
    items = grain.MapDataset.source(_Weighted(source, 1.0, len(source))).seed(seed)
    if shuffle:
        items = items.shuffle()
    items = items.repeat(num_epochs or _WITHOUT_END // len(source))
    missing = 0 if num_epochs is None else -len(source) * num_epochs % (batch_size * shard_count)
    if missing:
        filling = grain.MapDataset.source(_Weighted(source, 0.0, missing))
        items = grain.MapDataset.concatenate([items, filling])
    examples = items.random_map(_Example(transform))[shard_index::shard_count].batch(batch_size, batch_fn=stack)
    reading = grain.ReadOptions(num_threads=num_workers, prefetch_buffer_size=num_workers + _BATCHES_AHEAD)
    stream = examples.to_iter_dataset(reading)
    if num_processes:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags and die where nobody parsed them
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_processes))
    return iter(stream)


class _Weighted:
    """Items with a weight and their number; of weight 0, the first item over and over."""

    def __init__(self, source: Source, weight: float, length: int) -> None:
        self._source, self._weight, self._length = source, weight, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, float, int]:
        index = index if self._weight else 0
        return self._source[index], self._weight, index


class _Example:
    """The transform, on an item with its weight and number."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def __call__(self, numbered: tuple[Any, float, int], rng: np.random.Generator) -> Any:
        item, weight, number = numbered
        return replace(self._transform(item, rng), example_weight=np.float32(weight), item=np.int32(number))


def _check(source: Source, batch_size: int, num_epochs: int | None, num_workers: int, num_processes: int) -> None:
    if not len(source):
        raise InputError("there is no record to load; expected at least one in the split")
    for name, value in {"batch_size": batch_size, "num_workers": num_workers, "num_epochs": num_epochs}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1")
    if num_processes < 0:
        raise InputError(f"num_processes is {num_processes}; expected 0 (threads alone) or more")
