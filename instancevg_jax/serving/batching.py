"""One model, many requests: questions wait in a bounded queue and are answered in batches, one batch at a time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Busy(Exception):
    """The queue is full."""


@dataclass
class _Waiting(Generic[Item, Result]):
    question: Item
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Answers questions by calling a blocking function with up to `max_batch` of them, in a thread.

    A batch starts as soon as the previous one has ended, with whatever waits by then: a lone question is not delayed.
    """

    def __init__(
        self, answer_batch: Callable[[Sequence[Item]], Sequence[Result]], max_batch: int, max_waiting: int
    ) -> None:
        """`max_waiting`: questions that may wait; one more raises `Busy`."""
        self._answer_batch, self._max_batch, self._max_waiting = answer_batch, max_batch, max_waiting
        self._waiting: list[_Waiting[Item, Result]] = []
        self._wake = asyncio.Event()
        self.batches, self.answered = 0, 0

    @property
    def depth(self) -> int:
        """How many questions wait now."""
        return len(self._waiting)

    async def ask(self, question: Item) -> Result:
        """The answer to a question. Raises Busy, or what answering raised."""
        return (await self.ask_all([question]))[0]

    async def ask_all(self, questions: Sequence[Item]) -> list[Result]:
        """The answers to several questions, which wait together or not at all."""
        if len(self._waiting) + len(questions) > self._max_waiting:
            raise Busy
        asked = [_Waiting(question, asyncio.get_running_loop().create_future()) for question in questions]
        self._waiting += asked
        self._wake.set()
        try:
            return list(await asyncio.gather(*(one.answer for one in asked)))
        finally:  # a client that has gone away: nobody needs the rest
            for one in asked:
                one.answer.cancel()
            self._waiting = [one for one in self._waiting if not one.answer.done()]

    async def run(self) -> None:
        """Answer batches until cancelled."""
        while True:
            await self._wake.wait()
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            if not self._waiting:
                self._wake.clear()
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        self.batches, self.answered = self.batches + 1, self.answered + len(batch)
        try:
            answers = await asyncio.to_thread(self._answer_batch, [one.question for one in batch])
        except Exception as error:  # whatever the model raised is the answer of every question in the batch
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one, answer in zip(batch, answers, strict=True):
            if not one.answer.done():
                one.answer.set_result(answer)
