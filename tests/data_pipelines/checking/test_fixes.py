"""A repair never changes which objects a record means: it keeps all of them or drops the record and says so."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from data_pipelines import masks
from data_pipelines.checking.faults import Rules
from data_pipelines.checking.fixes import fix
from data_pipelines.checking.geometry import iou
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.prepare import prepare
from data_pipelines.records import RLE, Instance, Record
from instancevg_jax.errors import InputError
from tests.data_pipelines.checking.run import Check
from tests.data_pipelines.make import HEIGHT, WIDTH, annotation, generalized

coordinates = st.one_of(st.floats(-80, 140), st.integers(-80, 140), st.floats(0, 1), st.just(0.0))
polygons = st.lists(st.lists(coordinates, max_size=9), max_size=2)
run_lengths = st.builds(
    RLE, st.sampled_from([HEIGHT, WIDTH]), st.sampled_from([HEIGHT, WIDTH]), st.sampled_from(["", "55", "Q22P", "`Y2"])
)
instances = st.builds(
    Instance,
    st.none() | st.tuples(coordinates, coordinates, coordinates, coordinates),
    st.none() | polygons | run_lengths,
)
records = st.builds(
    Record,
    id=st.sampled_from("ab"),
    picture=st.sampled_from(["1.jpg", "2.jpg", "3.jpg", "lost.jpg"]),
    width=st.just(WIDTH),
    height=st.just(HEIGHT),
    expressions=st.lists(st.sampled_from(["a dog", "?!"]), min_size=1, max_size=2).map(tuple),
    instances=st.lists(instances, max_size=3).map(tuple),
    split=st.sampled_from(["train", "val"]),
) | st.builds(
    Record,
    id=st.just("c"),
    picture=st.just("turned.jpg"),
    width=st.sampled_from([0, WIDTH, HEIGHT]),
    height=st.sampled_from([HEIGHT, WIDTH]),
    expressions=st.just(("a dog",)),
    instances=st.lists(instances, max_size=3).map(tuple),
    split=st.just("val"),
)
PICTURES = {
    **{f"{i}.jpg": PictureInfo((HEIGHT, WIDTH)) for i in (1, 2, 3)},
    "lost.jpg": PictureInfo(None, "missing picture"),
    "turned.jpg": PictureInfo((WIDTH, HEIGHT), orientation=6),
}


def objects(record: Record) -> list[Instance]:
    return [i for i in record.instances if i.box is not None or i.segmentation is not None]


@settings(max_examples=200, deadline=None)
@given(st.lists(records, max_size=4), st.sampled_from(["official", "strict"]))
def test_no_record_loses_or_gains_an_object(drawn: list[Record], protocol: str):
    originals = {
        str(n): replace(r, id=str(n), instances=tuple(replace(i, id=str(k)) for k, i in enumerate(r.instances)))
        for n, r in enumerate(drawn)
    }
    repair = fix(list(originals.values()), PICTURES, Rules(protocol=protocol))
    assert {r.id for r in repair.records} | {d.record for d in repair.dropped} == originals.keys()
    for fixed in repair.records:
        before = originals[fixed.id]
        assert set(fixed.expressions) <= set(before.expressions)
        assert [i.id for i in fixed.instances] == [i.id for i in objects(before)]
        for old, new in zip(objects(before), fixed.instances, strict=True):
            assert bool(old.segmentation) == bool(new.segmentation)
            assert new.box
            if new.segmentation:
                mask = masks.to_rle(new.segmentation, fixed.height, fixed.width)
                assert masks.area(mask)
                assert iou(new.box, masks.bounds(mask)) >= 0.3


TWO, ONE, NONE = "two shapes", "one shape", "nothing"


def _coco(objects: dict[str, list[Any]]) -> dict[str, Any]:
    images = [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}]
    found = [(text, a) for text, targets in objects.items() for a in targets]
    annotations = [
        (a | {"id": i, "image_id": 1, "caption": text}) if isinstance(a, dict) else a
        for i, (text, a) in enumerate(found)
    ]
    return {"images": images, "annotations": [*annotations, {"id": 99, "image_id": 1, "caption": NONE}]}


def _grefs(objects: dict[str, list[Any]]) -> dict[str, Any]:
    return {"train": [generalized(1, text, *targets) for text, targets in [*objects.items(), (NONE, [])]]}


def _refer(objects: dict[str, list[Any]], folder: Path) -> list[dict[str, Any]]:
    images = [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}]
    annotations, references = [], []
    for number, (text, targets) in enumerate(objects.items()):
        ids = [10 * number + k for k in range(len(targets))]
        annotations += [a | {"id": i, "image_id": 1} for i, a in zip(ids, targets, strict=True)]
        references.append(
            {"ref_id": number, "image_id": 1, "split": "train", "ann_id": ids, "sentences": [{"raw": text}]}
        )
    nothing = {
        "ref_id": 9,
        "image_id": 1,
        "split": "train",
        "ann_id": [-1],
        "no_target": True,
        "sentences": [{"raw": NONE}],
    }
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return [*references, nothing]


def _lines(objects: dict[str, list[Any]]) -> str:
    def target(a: dict[str, Any]) -> dict[str, Any]:
        box = a["bbox"]
        whole = isinstance(box, list) and len(box) == 4
        return {"box": [*box[:2], box[0] + box[2], box[1] + box[3]] if whole else box, "mask": a["segmentation"]}

    entries = [
        {"image": "1.jpg", "expressions": text, "objects": [target(a) for a in t]} for text, t in objects.items()
    ]
    entries.append({"image": "1.jpg", "expressions": NONE, "objects": []})
    return "".join(json.dumps(entry) + "\n" for entry in entries)


LAYOUTS: dict[str, tuple[str, Callable[[dict[str, list[Any]], Path], str]]] = {
    "coco": ("coco.json", lambda objects, folder: json.dumps(_coco(objects))),
    "grefs": ("instance.json", lambda objects, folder: json.dumps(_grefs(objects))),
    "refer": ("refs(unc).json", lambda objects, folder: json.dumps(_refer(objects, folder))),
    "jsonl": ("own.jsonl", lambda objects, folder: _lines(objects)),
}
BROKEN: dict[str, dict[str, Any]] = {
    "box of three": {"bbox": [1, 2, 3]},
    "empty list as box": {"bbox": []},
    "text as box": {"bbox": "1 2 3 4"},
    "mask nested too deeply": {"segmentation": [[[[1, 2]]]]},
    "mask of text": {"segmentation": ["a"]},
    "no area": {"segmentation": [[5, 5, 9, 9]]},
    "wrong runs": {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}},
    "runs of another size": {"segmentation": {"size": [3, 3], "counts": [9]}},
    "far outside": {"segmentation": [[10, 10, 30, 10, 30, 30, 10, 900]]},
    "far from its mask": {"bbox": [50, 2, 8, 8]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("broken", BROKEN)
def test_a_record_with_a_broken_object_is_dropped_whole_and_listed(
    tmp_path: Path, images: Path, check: Check, layout: str, broken: str
):
    bad, good = annotation(**BROKEN[broken]), annotation(30, 15)
    name, content = LAYOUTS[layout]
    path = tmp_path / name
    path.write_text(content({TWO: [good, bad], ONE: [bad], "fine": [good]}, tmp_path))
    found = check(path, images)
    assert found.status == 1
    kept = {record.expressions[0]: len(objects(record)) for record in found.fixed}
    assert kept == {"fine": 1, NONE: 0}
    dropped = {entry["record"] for entry in found.listed if entry["fix"].startswith("the record is dropped: ")}
    assert len(dropped) == 2
    assert found.out.count(" records dropped: ") == 1
    unreadable = "unreadable record" in found.kinds
    if unreadable:
        with pytest.raises(InputError, match=r"2 records cannot be read: .*check --list FILE lists all"):
            prepare("custom", [path], images, tmp_path / "out")
        assert not (tmp_path / "out").exists()
