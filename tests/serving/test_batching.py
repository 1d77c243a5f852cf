"""Questions are batched, bounded, and answered each with its own answer."""

import asyncio
import threading

import pytest

from instancevg_jax.serving.batching import Batcher, Busy


def run(work):
    """Run an async function with a batcher at work."""

    async def main(batcher: Batcher):
        worker = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(work(batcher), 20)
        finally:
            worker.cancel()

    return main


def test_each_question_gets_its_answer_in_batches():
    sizes = []

    def double(batch):
        sizes.append(len(batch))
        return [2 * x for x in batch]

    async def work(batcher):
        return await asyncio.gather(*(batcher.ask(x) for x in range(20)))

    assert asyncio.run(run(work)(Batcher(double, max_batch=8, max_waiting=100))) == [2 * x for x in range(20)]
    assert max(sizes) == 8
    assert len(sizes) < 20


def test_a_full_queue_is_refused_and_works_on():
    started, released = threading.Event(), threading.Event()

    def slow(batch):
        started.set()
        released.wait(10)
        return batch

    async def work(batcher):
        first = asyncio.create_task(batcher.ask("first"))
        await asyncio.to_thread(started.wait, 10)
        waiting = [asyncio.create_task(batcher.ask(x)) for x in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await batcher.ask("too much")
        released.set()
        return await asyncio.gather(first, *waiting), batcher.depth

    assert asyncio.run(run(work)(Batcher(slow, max_batch=4, max_waiting=2))) == (["first", 0, 1], 0)


def test_a_client_that_goes_away_is_not_answered():
    seen = []
    started, released = threading.Event(), threading.Event()

    def note(batch):
        seen.extend(batch)
        started.set()
        released.wait(10)
        return batch

    async def work(batcher):
        first = asyncio.create_task(batcher.ask("first"))
        await asyncio.to_thread(started.wait, 10)
        gone = asyncio.create_task(batcher.ask("gone"))
        await asyncio.sleep(0)
        gone.cancel()
        released.set()
        await first
        return await batcher.ask("last")

    assert asyncio.run(run(work)(Batcher(note, max_batch=4, max_waiting=4))) == "last"
    assert seen == ["first", "last"]


def test_an_error_reaches_its_batch_and_not_the_next():
    def fail(batch):
        if "bad" in batch:
            raise RuntimeError("broken")
        return batch

    async def work(batcher):
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.ask("bad")
        return await batcher.ask("good")

    assert asyncio.run(run(work)(Batcher(fail, max_batch=1, max_waiting=4))) == "good"
