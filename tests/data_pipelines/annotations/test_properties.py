"""Whatever is wrong in a file, no record loses an object, and nothing but InputError is raised. In every layout."""

import copy
import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.reading import read
from data_pipelines.records import Record
from instancevg_jax.errors import InputError
from tests.data_pipelines.make import HEIGHT, WIDTH, annotation, generalized

IMAGE = {"id": 5, "file_name": "5.jpg", "width": WIDTH, "height": HEIGHT}
BOX, OTHER = [10, 10, 30, 30], [30, 15, 50, 35]
Place = tuple[Any, ...]  # keys and indices from a file's name to a value


class Layout(NamedTuple):
    """A file in which "two" means two objects and "one" means one, with the places of these objects."""

    path: str
    files: dict[str, Any]
    objects: list[Place]
    captions: str = ""
    nulls: bool = False  # a null object is a statement of this layout; it keeps its place in the record


def coco(**more: Any) -> Layout:
    found = [annotation(id=i, image_id=5, caption=c) for i, c in enumerate(["two", "two", "one"])]
    content = {"images": [IMAGE], "annotations": found} | more
    return Layout("a.json", {"a.json": content}, [("a.json", "annotations", i) for i in range(3)])


def coco_categories() -> Layout:
    found = [annotation(id=i, image_id=5, category_id=c) for i, c in enumerate([11, 11, 12])]
    names = [{"id": 11, "name": "two"}, {"id": 12, "name": "one"}]
    content = {"images": [IMAGE], "annotations": found, "categories": names}
    return Layout("a.json", {"a.json": content}, [("a.json", "annotations", i) for i in range(3)], "categories")


def mdetr() -> Layout:
    images = [IMAGE | {"caption": "two"}, IMAGE | {"id": 6, "caption": "one"}]
    found = [annotation(id=i, image_id=k) for i, k in enumerate([5, 5, 6])]
    content = {"images": images, "annotations": found}
    return Layout("a.json", {"a.json": content}, [("a.json", "annotations", i) for i in range(3)])


def jsonl(name: str) -> Layout:
    objects = [{"box": box, "mask": [[*box, 20, 25]]} for box in (BOX, OTHER)]
    lines = [
        {"image": "5.jpg", "expressions": n, "objects": found} for n, found in (("two", objects), ("one", objects[:1]))
    ]
    return Layout(
        name, {name: copy.deepcopy(lines)}, [(name, 0, "objects", 0), (name, 0, "objects", 1), (name, 1, "objects", 0)]
    )


def odvg() -> Layout:
    regions = [{"bbox": box, "phrase": phrase} for box, phrase in ((BOX, "two"), (OTHER, "two"), (BOX, "one"))]
    line = {
        "filename": "5.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "grounding": {"caption": "two and one", "regions": regions},
    }
    return Layout("a.jsonl", {"a.jsonl": [line]}, [("a.jsonl", 0, "grounding", "regions", i) for i in range(3)])


def grefs() -> Layout:
    entries = [generalized(5, "two", annotation(), annotation(30, 15)), generalized(5, "one", annotation())]
    places = [("a.json", "val", k, "annotations", i) for k, i in ((0, 0), (0, 1), (1, 0))]
    return Layout("a.json", {"a.json": {"val": entries}}, places, nulls=True)


def rrefcoco() -> Layout:
    entries = [generalized(5, "two", annotation(), annotation(30, 15)), generalized(5, "one", annotation())]
    places = [("a.json", "train", 0, k, "annotations", i) for k, i in ((0, 0), (0, 1), (1, 0))]
    return Layout("a.json", {"a.json": {"train": [entries]}}, places, nulls=True)


def mixed_seg() -> Layout:
    """Here an object and its record are one entry, so that "two" has one object as well."""
    entries = [
        {"image_id": 5, "width": WIDTH, "height": HEIGHT, "expressions": [name], "bbox": BOX, "mask": [[*BOX, 20, 25]]}
        for name in ("two", "one")
    ]
    return Layout("a.json", {"a.json": {"train": entries}}, [("a.json", "train", 0), ("a.json", "train", 1)])


def simvg() -> Layout:
    entry = generalized(5, "") | {"expressions": ["two", "one"], "bbox": [[BOX, OTHER], [BOX]]}
    entry["annotations"] = [[annotation(), annotation()], [annotation()]]
    places = [("a.json", "val", 0, "annotations", k, i) for k, i in ((0, 0), (0, 1), (1, 0))]
    return Layout("a.json", {"a.json": {"val": [entry]}}, places, nulls=True)


def refer(name: str) -> Layout:
    references = [
        {"image_id": 5, "ref_id": i, "split": "train", "ann_id": ids, "sentences": [{"raw": raw, "sent_id": i}]}
        for i, (raw, ids) in enumerate([("two", [1, 2]), ("one", [3])])
    ]
    content = {"images": [IMAGE], "annotations": [annotation(id=i, image_id=5) for i in (1, 2, 3)]}
    places = [("instances.json", "annotations", i) for i in range(3)]
    return Layout(name, {name: references, "instances.json": content}, places)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "coco": coco,
    "coco categories": coco_categories,
    "mdetr": mdetr,
    "json lines": lambda: jsonl("a.jsonl"),
    "list of records": lambda: jsonl("a.json"),
    "odvg": odvg,
    "grefs": grefs,
    "rrefcoco": rrefcoco,
    "mixed-seg": mixed_seg,
    "simvg": simvg,
    "refer": lambda: refer("refs(unc).p"),
    "grefer": lambda: refer("grefs(unc).json"),
}
DELETE = object()
DEEP: list[Any] = []
for _ in range(50):
    DEEP = [DEEP]
JUNK: list[Any] = [
    DELETE,
    None,
    True,
    "",
    "x",
    "1",
    "\ud800",
    "../a",
    "a" * 300,
    -1,
    0,
    1.5,
    10**400,
    2**33,
    float("nan"),
]
JUNK += [
    float("inf"),
    [],
    {},
    [[]],
    [None],
    [[1, 2]],
    [1, 2, 3],
    [1, 2, 3, 4],
    [[[1, 2], [3, 4]]],
    DEEP,
    {"raw": 3},
    [{}],
]
JUNK += [
    {"size": [2**32, 1], "counts": "0"},
    {"size": [4, 4], "counts": [20]},
    [{"size": [4, 4], "counts": "b'0'"}],
    {"id": []},
]


def changed(files: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A copy of the files with one value replaced or deleted."""
    files = copy.deepcopy(files)
    parent: Any = files
    for key in place[:-1]:
        parent = parent[key]
    if value is not DELETE:
        parent[place[-1]] = value
    elif isinstance(parent, dict):
        parent.pop(place[-1], None)
    else:
        del parent[place[-1]]
    return files


def read_layout(layout: Layout, files: dict[str, Any], problems: Problems) -> list[Record]:
    """Write the files and read them, without pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in files.items():
            if file.endswith(".jsonl") and isinstance(content, list):
                (folder / file).write_text("\n".join(map(json.dumps, content)))
            elif file.endswith(".p"):
                (folder / file).write_bytes(pickle.dumps(content))
            else:
                (folder / file).write_text(json.dumps(content))
        return read(folder / layout.path, problems, images=folder, captions=layout.captions)


def objects(layout: Layout, records: list[Record]) -> dict[str, int]:
    """How many objects each sentence has."""
    return {
        expression: sum(layout.nulls or i.box is not None or bool(i.segmentation) for i in record.instances)
        for record in records
        for expression in record.expressions
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_sound_file_reads_whole(name: str):
    layout = LAYOUTS[name]()
    assert objects(layout, read_layout(layout, layout.files, Problems())) == {
        "two": 1 if name == "mixed-seg" else 2,
        "one": 1,
    }


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_record_loses_an_object(name: str, data: st.DataObject):
    layout = LAYOUTS[name]()
    place = data.draw(st.sampled_from(layout.objects))
    value: Any = layout.files
    for key in place:
        value = value[key]
    # what says which sentence an object is of may become any other such statement, and is only replaced by what is none
    keys = [k for k in value if k not in ("caption", "phrase", "expressions", "image_id", "category_id", "id", "raw")]
    place = data.draw(st.sampled_from([place, *((*place, key) for key in keys)]))
    junk = [v for v in JUNK if v is not DELETE or len(place) > len(layout.objects[0])]
    problems = Problems(keep=True)
    found = objects(
        layout, read_layout(layout, changed(layout.files, place, data.draw(st.sampled_from(junk))), problems)
    )
    sound = objects(layout, read_layout(layout, layout.files, Problems()))
    lost = [sentence for sentence in sound if sentence not in found]
    assert {sentence: sound[sentence] for sentence in found} == found
    assert bool(problems.found) == bool(lost)


def places(value: Any, place: Place = ()) -> list[Place]:
    """The places of all values within one, itself included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return ([place] if place else []) + [p for key, item in items for p in places(item, (*place, key))]


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_malformed_file_raises_input_errors_only(name: str, data: st.DataObject):
    layout = LAYOUTS[name]()
    files = changed(
        layout.files, data.draw(st.sampled_from(places(layout.files)[1:])), data.draw(st.sampled_from(JUNK))
    )
    messages: list[str] = []
    for keep in (False, True):
        try:
            read_layout(layout, files, Problems(keep))
        except InputError as error:
            messages.append(str(error))
    assert all("\n" not in message and len(message) < 1000 for message in messages)
