"""Batches: every item once an epoch, the same whatever the workers and shards, resumable in the middle."""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from data_pipelines.loader import batches
from instancevg_jax.errors import InputError
from instancevg_jax.types import Batch, Targets


def example(item: int, rng: np.random.Generator) -> Batch:
    """An example that only says which item it is, and one number drawn."""
    targets = Targets(
        boxes=np.zeros((1, 4), np.float32), valid=np.zeros(1, bool), masks=np.zeros((1, 2, 2), bool), mask=None
    )
    drawn = np.int32(rng.integers(2**31))
    return Batch(
        images=np.int32(item),
        token_ids=drawn,
        token_mask=None,
        targets=targets,
        example_weight=np.float32(1),
        item=np.int32(-1),
    )


def stack(examples: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *rows: np.stack(rows), *examples)


def load(count: int = 10, batch_size: int = 3, shuffle: bool = True, num_epochs: int | None = 2, **options):
    return batches(
        range(count),
        example,
        batch_size,
        options.pop("seed", 5),
        shuffle,
        num_epochs,
        options.pop("workers", 2),
        stack=stack,
        **options,
    )


def items(found) -> list[int]:
    return [int(i) for batch in found for i, w in zip(batch.images, batch.example_weight, strict=True) if w]


def test_every_item_once_an_epoch_in_a_new_order():
    order = items(load(num_epochs=3))
    epochs = [order[:10], order[10:20], order[20:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(10))}) == 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_without_end_the_epochs_are_the_same(batch_size):
    """Batches of one too, as a process may have of a small global batch."""
    stream = load(batch_size=batch_size, num_epochs=None)
    assert items(next(stream) for _ in range(30 // batch_size)) == items(load(num_epochs=3))


def test_examples_carry_the_number_of_their_item():
    for batch in load():
        np.testing.assert_array_equal(batch.item, batch.images)
        assert batch.item.dtype == np.int32


def test_all_batches_have_one_shape_and_the_last_is_filled():
    found = list(load())
    assert [batch.images.shape for batch in found] == [(3,)] * 7
    assert [batch.example_weight.tolist() for batch in found[-2:]] == [[1, 1, 1], [1, 1, 0]]
    assert found[0].targets.masks.shape == (3, 1, 2, 2)
    assert found[0].example_weight.dtype == np.float32


def test_the_order_is_a_function_of_the_seed_alone():
    first = list(load(workers=1))
    for other in (load(workers=1), load(workers=4)):
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert items(load(seed=6)) != items(first)


def test_draws_differ_between_epochs():
    drawn = [
        int(i) for batch in load(num_epochs=2) for i, w in zip(batch.token_ids, batch.example_weight, strict=True) if w
    ]
    assert len(set(drawn)) == 20


@pytest.mark.parametrize("count", [10, 12, 13])
def test_shards_together_are_the_whole(count: int):
    shards = [list(load(count, 2, shard_index=s, shard_count=3)) for s in range(3)]
    assert len({len(shard) for shard in shards}) == 1
    assert Counter(i for shard in shards for i in items(shard)) == dict.fromkeys(range(count), 2)
    together = list(load(count, 6))
    for whole, *parts in zip(together, *shards, strict=True):
        interleaved = np.stack([part.images for part in parts], axis=1).ravel()
        np.testing.assert_array_equal(interleaved, whole.images)
        drawn = np.stack([part.token_ids for part in parts], axis=1).ravel()
        np.testing.assert_array_equal(drawn, whole.token_ids)


def test_unshuffled_rows_are_where_the_docstring_says():
    for shard in range(2):
        for k, batch in enumerate(load(9, 2, shuffle=False, num_epochs=1, shard_index=shard, shard_count=2)):
            for r, weight in enumerate(batch.example_weight):
                if weight:
                    assert batch.images[r] == (k * 2 + r) * 2 + shard


@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_resuming_in_the_middle_of_an_epoch(taken: int):
    whole = list(load())
    started = load()
    for _ in range(taken):
        next(started)
    resumed = load()
    resumed.set_state(started.get_state())
    rest = list(resumed)
    assert len(rest) == len(whole) - taken
    for a, b in zip(whole[taken:], rest, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.token_ids, b.token_ids)


def test_without_an_end_it_continues():
    endless = load(num_epochs=None)
    order = items(next(endless) for _ in range(20))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(order) == 60


def failing(item: int, rng: np.random.Generator) -> Batch:
    if item == 4:
        raise InputError("record 4 (a.jpg): no such file")
    return example(item, rng)


def test_errors_of_the_transform_come_out_as_they_are():
    with pytest.raises(InputError, match=r"record 4 \(a.jpg\): no such file"):
        list(batches(range(10), failing, 3, 0, False, 1, 2, stack=stack))


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="the split has no records"):
        load(0)
