"""Formats answers as text, JSON, JSON lines or COCO results, one by one."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.questions import Question
from instancevg_jax.errors import InputError


class Answered(NamedTuple):
    """A question, its answer or the error, and the files written for it, by their content ("drawing")."""

    question: Question
    answer: Grounding | InputError
    files: dict[str, Path]


def render(form: str, answered: Iterable[Answered], sentence: str | None = None) -> Iterator[str]:
    """Text that, joined, is a document of the format.

    Args:
        form: "text": a few lines per answer; failures are left out. "json": one object with `results`. "jsonl": one such
            result per line. "coco": a list of COCO results with the picture's path as `image_id`; failures are left out.
        answered: consumed one by one.
        sentence: what all questions ask, if they share it; "json" then has it as `expression`.
    """
    if form == "text":
        yield from (_text(one) for one in answered if isinstance(one.answer, Grounding))
    elif form == "jsonl":
        yield from (_dumps(_result(one)) + "\n" for one in answered)
    elif form == "json":
        shared = "" if sentence is None else f'"expression": {_dumps(sentence)}, '
        yield from _joined(f'{{{shared}"results": [', (_dumps(_result(one)) for one in answered), "]}\n")
    else:
        yield from _joined("[", (_dumps(entry) for one in answered for entry in _coco(one)), "]\n")


def _joined(begin: str, parts: Iterable[str], end: str) -> Iterator[str]:
    yield begin
    separator = "\n"
    for part in parts:
        yield separator + part
        separator = ",\n"
    yield f"\n{end}"


def _result(one: Answered) -> dict[str, Any]:
    asked = {"image": one.question.image, "expression": one.question.expression}
    if isinstance(one.answer, InputError):
        return {**asked, "error": str(one.answer)}
    return {**asked, **one.answer.to_json(), **{name: str(path) for name, path in one.files.items()}}


def _coco(one: Answered) -> list[dict[str, Any]]:
    if isinstance(one.answer, InputError):
        return []
    return [
        {**entry, "expression": one.question.expression} for entry in one.answer.to_coco(image_id=one.question.image)
    ]


def _text(one: Answered) -> str:
    answer = one.answer
    assert isinstance(answer, Grounding)
    lines = [f"{one.question.image}: {one.question.expression!r}: {answer.verdict}"]
    for score, box in zip(answer.scores, answer.boxes_xyxy, strict=True):
        lines.append(f"  score {score:.3f}  box " + " ".join(f"{value:.1f}" for value in box))
    lines += [f"  {name.replace('_', ' ')}: {path}" for name, path in one.files.items()]
    return "\n".join(lines) + "\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
