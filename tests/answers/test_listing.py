"""Questions from arguments and lists, and answers as text, JSON, JSON lines and COCO results."""

import json
from pathlib import Path

import pytest

from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.listing import Answered, render
from instancevg_jax.answers.questions import Question, destinations, expand, file_stems, read_list
from instancevg_jax.errors import InputError
from tests.answers.test_grounding import answer

ANSWERED = [
    Answered(Question("a.png", "a dog"), answer(2), {"drawing": Path("out/a.png")}),
    Answered(Question("b.png", "a dog"), InputError("b.png: no such file"), {}),
    Answered(Question("c.png", "ein \udcff Hund"), answer(0), {}),
]


@pytest.mark.parametrize("answered", [ANSWERED, ANSWERED[1:2], []])
def test_every_format_is_a_document_and_streams(answered: list[Answered]):
    whole = json.loads("".join(render("json", answered, "a dog")))
    lines = [json.loads(line) for text in render("jsonl", answered) for line in text.splitlines()]
    entries = json.loads("".join(render("coco", answered)))
    assert whole["expression"] == "a dog"
    assert whole["results"] == lines
    assert [line["image"] for line in lines] == [one.question.image for one in answered]
    assert [("error" in line) for line in lines] == [isinstance(one.answer, InputError) for one in answered]
    assert len(entries) == sum(len(one.answer) for one in answered if isinstance(one.answer, Grounding))
    assert {entry["image_id"] for entry in entries} <= {"a.png"}


def test_answers_are_rendered_as_they_come():
    """Nothing is asked for before it is written: memory does not grow with the number of answers."""
    taken = []

    def stream():
        for one in ANSWERED * 20:
            taken.append(one)
            yield one

    for form in ("text", "json", "jsonl", "coco"):
        taken.clear()
        texts = render(form, stream())
        next(texts)
        assert len(taken) <= 1


def test_text_has_verdict_boxes_and_files():
    text = "".join(render("text", ANSWERED))
    assert text.splitlines() == [
        "a.png: 'a dog': 2 objects",
        "  score 0.900  box 0.0 5.0 6.0 25.0",
        "  score 0.800  box 8.0 5.0 14.0 25.0",
        "  drawing: out/a.png",
        r"c.png: 'ein \udcff Hund': no target (p = 0.90)",
    ]


def test_folders_and_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.JPG", "p/sub/a.png", "p/notes.txt", "q[1].png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert expand(["p", "missing.png", "q[1].png", "p/*/*.png"]) == [
        "p/b.JPG", "p/sub/a.png", "missing.png", "q[1].png", "p/sub/a.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "q.jsonl",
            '{"image": "a.png", "expression": "a dog"}\n\n{"image": "/b.png", "expressions": ["x", "y"], "id": 3}\n',
        ),
        ("q.csv", "expression,image,id\na dog,a.png,1\nx,/b.png,2\ny,/b.png,3\n"),
    ],
)
def test_lists(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_list(tmp_path / name) == [(str(tmp_path / "a.png"), "a dog"), ("/b.png", "x"), ("/b.png", "y")]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("q.jsonl", '{"image": "a.png", "expression": "a dog"}\n{"image": "a.png"}\n', "line 2: .* not text"),
        ("q.jsonl", '{"image": "a.png", "expression": 5}\n', "line 1: .* not text"),
        ("q.jsonl", "[1]\n", "line 1: expected 'image' and 'expression'"),
        ("q.jsonl", "{\n", "line 1: not valid JSON"),
        ("q.jsonl", "\n", "no questions"),
        ("q.csv", "image,text\na.png,a dog\n", "line 2: .* not text"),
        ("q.csv", "", "no questions"),
        ("missing/q.csv", None, "cannot be read"),
        ("q.txt", "a.png a dog", r"expected a \.jsonl or \.csv file"),
    ],
)
def test_bad_lists_name_the_line(name: str, text: str | None, says: str, tmp_path: Path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_list(tmp_path / name)


def test_no_two_answers_share_a_file():
    questions = [Question(image, text) for image in ("a/x.png", "b/x.png", "x-1.png", "y.png") for text in ("1", "2")]
    stems = file_stems(questions)
    assert len(set(stems)) == len(questions)
    with pytest.raises(InputError, match="name the same files"):
        destinations(questions, "out/", "out/", None)
