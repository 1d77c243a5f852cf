"""Reads annotation files of any known layout as `Record`s. The layout is recognized from the content.

a dict of splits                  the original's files and SimVG's: `original`
a list of references              refs(unc).p, grefs(unc).json, with instances.json in the same folder: `refer`
images, annotations               COCO with captions per annotation or per image, or category names: `coco`
JSON lines, or a list of records  this project's own layout, and ODVG: `jsonl`, `odvg`
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from data_pipelines.annotations import coco, foreign, jsonl, original, refer
from data_pipelines.annotations.mixture import merge as merge_files
from data_pipelines.annotations.pictures import find_pictures
from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.source import AnnotationFile, opened, parse_json
from data_pipelines.records import Record, is_training
from instancevg_jax.errors import InputError

CAPTIONS = {"categories": "the names of the categories of a detection export are its sentences"}
_JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
_PICKLES = (".p", ".pkl", ".pickle")
_START = 4096  # bytes


def read(
    path: str | Path, problems: Problems | None = None, *, images: str | Path | None = None, captions: str = ""
) -> list[Record]:
    """All records of a file, split by split, in the file's order.

    Outside training splits, a record with several expressions becomes one record per expression: evaluation counts each.
    An object that cannot be read makes its whole record unreadable.

    Args:
        path: the annotation file, which may be compressed by gzip.
        problems: receives notes and, with `keep`, the unreadable records, which are left out.
        images: the folder of the pictures. With it, pictures are found under other spellings of their names, and masks that
            are picture files are looked for there.
        captions: "categories" makes the category names of a detection export its sentences.

    Raises:
        InputError: no such file, no known layout, or a value that is missing or of the wrong kind; the message names the
            file and the place in it.
    """
    if captions not in ("", *CAPTIONS):
        raise InputError(f"--captions is {captions!r}; expected {', '.join(CAPTIONS)}")
    problems = Problems() if problems is None else problems
    source = AnnotationFile(Path(path), problems, Path(images) if images else None, captions)
    try:
        records = [single for record in _read(source) for single in one_per_expression(record)]
        if not records and not problems.found:
            raise InputError("the file holds no record; expected at least one")
        return find_pictures(records, source.images, problems) if source.images else records
    except InputError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply; expected annotations") from error


def read_files(
    paths: Sequence[str | Path],
    problems: Problems | None = None,
    *,
    images: str | Path | None = None,
    captions: str = "",
    merge: str = "",
) -> list[Record]:
    """The records of several files as one data set. See `read`, and `mixture.merge` for `merge` and the errors it raises."""
    files = [(Path(path), read(path, problems, images=images, captions=captions)) for path in paths]
    return merge_files(files, merge)


def _read(source: AnnotationFile) -> list[Record]:
    _check_file(source)
    is_pickle = source.name.endswith(_PICKLES)
    if not is_pickle and _is_lines(source):
        return jsonl.read(source)
    content = source.load_pickle() if is_pickle else source.load_json()
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return coco.read(content, source)
    entries = list(content) if isinstance(content, list | tuple) else [content]
    if any(map(jsonl.is_entry, entries)):
        return jsonl.read_list(entries, source)
    if source.captions:
        raise InputError(f"no detection export (COCO, ODVG); expected one with --captions {source.captions}")
    if any(map(refer.is_entry, entries)):
        return refer.read(entries, source)
    if _is_dict_of_splits(content):
        return original.read(content, source)
    raise InputError(_unknown(content))


def _check_file(source: AnnotationFile) -> None:
    try:
        if not source.path.is_file():
            what = "a folder" if source.path.is_dir() else "no regular file" if source.path.exists() else ""
            raise InputError(
                f"{source.path}: {f'is {what}' if what else 'no such file'}; expected a file of annotations"
            )
    except OSError as error:
        raise InputError(f"{source.path}: cannot be read ({error.strerror})") from error
    with opened(source.path) as file:
        start = file.read(_START)
    if not start.removeprefix(b"\xef\xbb\xbf").strip():
        raise InputError("the file is empty; expected annotations")
    found = foreign.looks_like(start, source.name)
    if source.name.endswith(_PICKLES):
        is_json = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")  # with which no pickle begins
        found = "JSON; give it a name that ends in .json" if is_json else "" if start[:1] == b"\x80" else found
    if found:
        raise InputError(f"this looks like {found} (docs/data.md has the layouts that are read)")


def _is_lines(source: AnnotationFile) -> bool:
    """Whether a file has one JSON object per line: its first two lines are objects, or its name says so and nothing else does."""
    lines = [line.removeprefix(b"\xef\xbb\xbf").strip() for _, line in itertools.islice(source.lines(), 2)]
    if lines[0] == b"{" or lines[0].startswith(b"["):
        return False
    try:
        values = [parse_json(line, "") for line in lines]
    except InputError:
        values = []
    if source.name.endswith(_JSON_LINES):
        return not (len(values) == 1 and isinstance(values[0], dict) and "annotations" in values[0])
    return len(values) == 2 and all(isinstance(value, dict) for value in values)


def _is_dict_of_splits(content: Any) -> TypeGuard[dict[str, list[Any]]]:
    if not isinstance(content, dict) or not content or not all(isinstance(items, list) for items in content.values()):
        return False
    return not content.keys() & {"images", "annotations", "categories"}  # these are parts of COCO's layout


def _unknown(content: Any) -> str:
    """The error message for content of an unknown layout, which names the layout if it is a common one."""
    known = foreign.layout_of(content)
    looks = f"this looks like {known}, which is not read" if known else "no known layout"
    if not known and isinstance(content, dict) and content.keys() & {"images", "annotations", "categories"}:
        looks = f"this looks like COCO's layout without {'images' if 'annotations' in content else 'annotations'}"
    return (
        f"{looks}; expected a dict of splits, COCO's images and annotations, a list of references with sentences, or JSON lines "
        "(docs/data.md)"
    )


def one_per_expression(record: Record) -> list[Record]:
    """A record of a training split itself; of any other split, one record per expression, since evaluation counts each."""
    if is_training(record.split) or len(record.expressions) == 1:
        return [record]
    return [replace(record, id=f"{record.id}/{k}", expressions=(e,)) for k, e in enumerate(record.expressions)]
