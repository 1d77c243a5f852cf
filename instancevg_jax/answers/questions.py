"""Turns the arguments of `predict` into (picture, sentence) questions, and names the files for their answers."""

import csv
import glob
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from instancevg_jax.errors import InputError

if TYPE_CHECKING:
    from instancevg_jax.answers.grounding import Grounding

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # that drawings can be written as
READ_IN_FOLDERS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Question(NamedTuple):
    """A picture's path, as the user knows it, and a sentence."""

    image: str
    expression: str


def expand(images: Sequence[str]) -> list[str]:
    """Paths of pictures: files as they are, a folder's pictures (subfolders included), and what a pattern matches.

    A path that does not exist is kept, and reported when it is read. Raises InputError for a folder without pictures
    and for a pattern that matches nothing.
    """
    paths: list[str] = []
    for image in images:
        path = Path(image)
        if path.is_dir():
            found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in READ_IN_FOLDERS)
            expected = f"a folder with {', '.join(sorted(READ_IN_FOLDERS))} files"
        elif glob.has_magic(image) and not path.exists():
            found = sorted(p for p in glob.glob(image, recursive=True) if not Path(p).is_dir())
            expected = "a pattern that matches pictures"
        else:
            paths.append(image)
            continue
        if not found:
            raise InputError(f"{image}: no pictures found; expected {expected}")
        paths += found
    return paths


def read_list(path: Path) -> list[Question]:
    """The questions of a .jsonl file ({"image": ..., "expression": ...} per line) or a .csv file with such columns.

    A line of JSON may have `expressions`, a list, instead. Relative paths start at the list's folder. Other keys and columns
    are ignored. Raises InputError for a file that cannot be read, and names the line that is wrong.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows}
    if path.suffix.lower() not in readers:
        raise InputError(f"--list {path}: expected a .jsonl or .csv file")
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"--list {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--list {path}: not valid UTF-8 ({error.reason} at byte {error.start})") from error
    questions: list[Question] = []
    for number, row in readers[path.suffix.lower()](path, text):
        row = row if isinstance(row, dict) else {}
        image, expressions = row.get("image"), row.get("expressions", [row.get("expression")])
        if not (isinstance(image, str) and image and isinstance(expressions, list) and expressions):
            raise InputError(f"--list {path}, line {number}: expected 'image' and 'expression'")
        if not all(isinstance(expression, str) for expression in expressions):
            raise InputError(f"--list {path}, line {number}: 'expression' is missing or not text")
        questions += [Question(str(path.parent / image), expression) for expression in expressions]
    if not questions:
        raise InputError(f"--list {path}: no questions in it")
    return questions


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"--list {path}, line {number}: not valid JSON ({error})") from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"--list {path}, line {reader.line_num}: not valid CSV ({error})") from error


class Destination(NamedTuple):
    """Where the files of a question's answer go; None where they are not wanted."""

    drawing: Path | None
    explanation: Path | None
    masks: Path | None  # a folder of this question's own

    def write(self, answer: "Grounding") -> dict[str, Path]:
        """Write the files. Returns where they are, by what they hold. Raises InputError where one cannot be written."""
        from instancevg_jax.answers.draw import write_picture

        files: dict[str, Path] = {}
        if self.drawing:
            write_picture(self.drawing, np.asarray(answer.draw()))
            files["drawing"] = self.drawing
        if self.explanation:
            write_picture(self.explanation, np.asarray(answer.explain()))
            files["explanation"] = self.explanation
        if self.masks:
            answer.save_masks(self.masks)
            files["mask_folder"] = self.masks
        return files


def destinations(
    questions: Sequence[Question], drawings: str | None, explanations: str | None, masks: str | None
) -> list[Destination]:
    """Where the answers of each question go. Raises InputError as `output_paths` does."""
    nowhere: list[Path | None] = [None] * len(questions)
    drawn = output_paths("--output", drawings, questions) if drawings else nowhere
    explained = output_paths("--explain", explanations, questions) if explanations else nowhere
    if drawings and explanations and set(drawn) & set(explained):
        raise InputError(f"--explain {explanations} and --output name the same files; expected two names")
    if masks and Path(masks).exists() and not Path(masks).is_dir():
        raise InputError(f"--masks {masks} is a file; expected a folder")
    stems = [Path(masks) / stem for stem in file_stems(questions)] if masks else nowhere
    return [Destination(*paths) for paths in zip(drawn, explained, stems, strict=True)]


def file_stems(questions: Iterable[Question]) -> list[str]:
    """A file name without suffix for each question's answer: its picture's, numbered where several would share it."""
    stems = [Path(question.image).stem for question in questions]
    count, taken = Counter(stems), set(stems)
    numbers = {stem: itertools.count(1) for stem in count}
    names = []
    for stem in stems:
        name = stem
        while count[stem] > 1 and name in taken:
            name = f"{stem}-{next(numbers[stem])}"
        taken.add(name)
        names.append(name)
    return names


def output_paths(option: str, output: str, questions: Sequence[Question]) -> list[Path]:
    """One picture file per question, where `output` is a file for one question or a folder.

    Raises InputError for an impossible destination, and where a file would overwrite a picture that is read.
    """
    path = Path(output)
    is_folder = path.is_dir() or output.endswith("/") or not path.suffix
    if is_folder:
        paths = [path / f"{stem}.png" for stem in file_stems(questions)]
    elif len(questions) > 1:
        raise InputError(f"{option} {output} is one file for {len(questions)} answers; expected a folder")
    elif path.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"{option} {output}: cannot write {path.suffix}; expected one of {' '.join(PICTURE_SUFFIXES)}")
    else:
        paths = [path]
    for parent in [*([path] if is_folder else []), *path.parents]:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"{option} {output}: {parent} is a file; expected a folder")
    read = {Path(question.image).resolve() for question in questions}
    for path in paths:
        if path.resolve() in read:
            raise InputError(f"{option} would overwrite {path}, which is an input; expected another name")
    return paths
