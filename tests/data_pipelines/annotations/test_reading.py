"""Every layout becomes the same records; whatever is wrong in a file is named."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import masks
from data_pipelines.annotations import jsonl, reading
from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.source import AnnotationFile
from data_pipelines.records import RLE, Instance, Record, by_split, most_objects, units
from instancevg_jax.errors import InputError
from tests import oracle
from tests.data_pipelines.make import HEIGHT, NULL, POLYGON, WIDTH, annotation, generalized

COCO_NAME = "COCO_train2014_000000000005.jpg"
IMAGE = {"id": 5, "file_name": "5.jpg", "width": WIDTH, "height": HEIGHT}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_mixed_seg(tmp_path: Path):
    entry = {"image_id": 5, "width": WIDTH, "height": HEIGHT, "bbox": [10, 10, 20, 20], "mask": POLYGON, "id": 3}
    train = entry | {"expressions": ["red dog", "a dog"]}
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [0, 100, HEIGHT * WIDTH - 100]}
    val = entry | {"expressions": ["left", "right"], "mask": uncompressed}
    records = reading.read(write(tmp_path / "instances.json", {"train": [train], "val_refcoco_unc": [val]}))
    target = Instance((10, 10, 30, 30), POLYGON, "3")
    assert records[0] == Record("train[0]", COCO_NAME, WIDTH, HEIGHT, ("red dog", "a dog"), (target,), "train")
    assert [(r.id, r.expressions) for r in records[1:]] == [
        ("val_refcoco_unc[0]/0", ("left",)),
        ("val_refcoco_unc[0]/1", ("right",)),
    ]
    rle = records[1].instances[0].segmentation
    assert isinstance(rle, RLE)
    assert masks.decode(rle).T.ravel().nonzero()[0].tolist() == list(range(100))


@pytest.mark.parametrize(
    "expressions", ["a dog", ["a dog"], {"raw": "a dog"}, {"raw": ["a dog"]}, [{"raw": "a dog", "sent_id": 3}]]
)
def test_grefs_takes_expressions_in_every_form(tmp_path: Path, expressions: Any):
    entry = generalized(5, "", annotation(), NULL, annotation(30, 15)) | {"expressions": expressions}
    (record,) = reading.read(write(tmp_path / "instance.json", {"val": [entry]}))
    assert record.expressions == ("a dog",)
    assert record.picture == "5.jpg"
    assert [i.box for i in record.instances] == [(10, 10, 30, 30), None, (30, 15, 50, 35)]


def test_no_target_keeps_its_null(tmp_path: Path):
    entries = [
        generalized(5, "a cat", NULL),
        generalized(5, "a cat"),
        generalized(5, "a cat", {"category_id": -1, "bbox": [0, 0, 0, 0]}),
    ]
    records = reading.read(write(tmp_path / "instance.json", {"val": entries}))
    assert [r.instances for r in records] == [(Instance(None, None),), (), (Instance(None, None),)]
    assert most_objects(records, "strict") == most_objects(records, "official") == 0


def test_rrefcoco_groups(tmp_path: Path):
    items = [generalized(5, text, annotation()) for text in "abcd"]
    content = {"train": [items[:3], items[3:]], "val_rrefcoco+": [[item] for item in items]}
    write(tmp_path / "instance_index.json", {"val_rrefcoco+": [[0, 3], [3, 4]]})
    splits = by_split(reading.read(write(tmp_path / "instance.json", content)))
    assert units(splits["train"]) == [range(0, 3), range(3, 4)]
    assert len(units(splits["val_rrefcoco+"])) == 4
    groups = [record.group for record in splits["val_rrefcoco+"]]
    assert groups == ["val_rrefcoco+/group0"] * 3 + ["val_rrefcoco+/group1"]


def test_simvgs_parallel_lists(tmp_path: Path):
    entry = generalized(5, "") | {
        "expressions": ["two dogs", "nothing"],
        "bbox": [[[10, 10, 20, 20], [30, 15, 20, 20]], [[0, 0, 0, 0]]],
        "annotations": [[annotation(bbox=None), {"category_id": 1}], [{"category_id": -1}]],
    }
    records = reading.read(write(tmp_path / "instances.json", {"train": [entry], "val": [entry]}))
    assert [(r.expressions, len(r.instances)) for r in records] == [(("two dogs",), 2), (("nothing",), 1)] * 2
    assert [i.box for i in records[0].instances] == [(10, 10, 30, 30), (30, 15, 50, 35)]
    assert records[1].instances == (Instance(None, None),)
    assert units(records) == [range(0, 2), range(2, 3), range(3, 4)]


def refer_folder(folder: Path, references: list[dict]) -> Path:
    found = [annotation(id=1, image_id=5), annotation(30, 15, id=2, image_id=5)]
    write(folder / "instances.json", {"images": [IMAGE], "annotations": found})
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(references, protocol=2))
    return path


def reference(split: str, ann_id: Any, *sentences: str, **more: Any) -> dict[str, Any]:
    found = [{"raw": s, "sent": s.lower(), "sent_id": f"{split}{s}"} for s in sentences]
    return {"image_id": 5, "ref_id": 1, "split": split, "ann_id": ann_id, "sentences": found} | more


def test_refer_layout(tmp_path: Path):
    references = [reference("train", 1, "A", "B"), reference("val", 2, "C", "D")]
    records = reading.read(refer_folder(tmp_path, references))
    assert [r.expressions for r in records] == [("A", "B"), ("C",), ("D",)]
    assert [r.instances[0].id for r in records] == ["1", "2", "2"]
    assert records[0].picture == "5.jpg"


def test_grefer_layout(tmp_path: Path):
    references = [reference("train", [1, 2], "A", "B"), reference("val", [-1], "C", no_target=True)]
    refer_folder(tmp_path, [])
    records = reading.read(write(tmp_path / "grefs(unc).json", references))
    assert [(r.expressions, len(r.instances)) for r in records] == [(("A",), 2), (("B",), 2), (("C",), 1)]
    assert records[2].instances == (Instance(None, None),)


def test_a_pickle_that_names_a_function_is_refused(tmp_path: Path):
    class Call:
        def __reduce__(self):
            return print, ("called",)

    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Call()]))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p: found builtins.print, which is not plain data"):
        reading.read(path)
    path.write_bytes(b"X\xff\xff\xff\x7f")
    with pytest.raises(InputError, match="damaged"):
        reading.read(path)
    path.write_bytes(b"\x8e" + (2**62).to_bytes(8, "little"))  # a string of so many bytes
    with pytest.raises(InputError, match="damaged"):
        reading.read(path)
    path.write_bytes(pickle.dumps([1, 2])[:-3])
    with pytest.raises(InputError, match="damaged"):
        reading.read(path)


def test_plain_pickles_load_as_they_are(tmp_path: Path):
    content = [{"a": (1, 2.5, None, True), "b": {"x"}, "c": b"d"}]
    for protocol in (0, 2, 4, 5):
        (tmp_path / "p").write_bytes(pickle.dumps(content if protocol > 2 else content[0]["a"], protocol=protocol))
        assert AnnotationFile(tmp_path / "p").load_pickle() == (content if protocol > 2 else content[0]["a"])


def test_coco_with_captions(tmp_path: Path):
    images = [IMAGE | {"split": "val"}]
    found = [
        annotation(image_id=5, caption="dogs"),
        annotation(30, 15, image_id=5, caption="dogs", id=8),
        annotation(image_id=5, id=9),
    ]
    found.append({"image_id": 5, "caption": "a cat"})
    records = reading.read(write(tmp_path / "coco.json", {"images": images, "annotations": found}))
    assert [(r.expressions, r.split, most_objects([r], "strict")) for r in records] == [
        (("dogs",), "val", 2),
        (("a cat",), "val", 0),
    ]


def test_jsonl_returns_what_was_written(tmp_path: Path):
    rle = masks.to_rle(POLYGON, HEIGHT, WIDTH)
    objects = (Instance((1.5, 2, 3, 4), POLYGON, "a"), Instance(None, rle))
    record = Record("x", "a/b.jpg", WIDTH, HEIGHT, ("a dög", "it"), objects, "train", "g")
    with_null = replace(record, instances=(objects[0], Instance(None, None), objects[1]))
    jsonl.write(tmp_path / "own.jsonl", [record, with_null])
    assert reading.read(tmp_path / "own.jsonl") == [record, record]
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_jsonl_needs_little(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"image": "a.jpg", "expressions": "the red car", "objects": [{"box": [10, 20, 30, 40]}]}\n\n')
    assert reading.read(path) == [
        Record("own.jsonl line 1", "a.jpg", 0, 0, ("the red car",), (Instance((10, 20, 30, 40), None),), "train")
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json is not valid JSON"),
        ("a.json", "3", "a.json: no known layout"),
        ("a.json", '{"val": [3]}', r"a.json: val\[0\] is 3; expected a record"),
        ("a.json", '{"val": [{"annotations": [], "image_id": 1}]}', r"val\[0\].expressions is missing or null"),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", annotation(bbox=[1, 2]))]}),
            r"bbox is \[1, 2\]; expected \[x, y",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", annotation(bbox=[1, 2, 3, "4 px"]))]}),
            "is '4 px'; expected a number",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", width=-1)]}),
            "width is -1; expected a whole number from 0",
        ),
        ("a.json", '{"images": [], "annotations": [{}]}', "no annotation and no image has a caption"),
        ("a.json", '{"val": [{"expressions": ["a"], "bbox": [[]], "annotations": [[{}]]}]}', "differ in length"),
        ("a.jsonl", '{"image": "a.jpg"}', "a.jsonl: line 1.expressions is missing or null"),
        ("a.jsonl", '{"picture": "a.jpg"}', "line 1 has an unknown key 'picture'; expected expressions"),
        ("a.jsonl", "\n", "the file is empty"),
        ("a.json", '[{"sentences": []}]', "instances.json: no such file"),
        ("a.json", "[" * 100_000, "a.json is not valid JSON"),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", width=10**400)]}),
            "width is an integer of 1329 bits",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "\ud800")]}),
            "with an unpaired surrogate; expected valid Unicode",
        ),
        ("a.json", json.dumps({"val": [generalized(1, "a", file_name="/etc/a.jpg")]}), "expected a file name within"),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", file_name="b/../../a.jpg")]}),
            "expected a file name within",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", file_name="ä" * 128)]}),
            "expected at most 255 bytes per name",
        ),
        (
            "a.json",
            '{"val": [{"expressions": ["a"], "bbox": null, "annotations": [[null]]}]}',
            r"val\[0\].annotations\[0\]\[0\] is missing or null; expected an annotation",
        ),
        (
            "a.json",
            '{"val": [{"expressions": ["a"], "bbox": [null], "annotations": [[{}]]}]}',
            r"val\[0\].bbox and val\[0\].annotations differ in length at expression 0",
        ),
        ("a.json", '{"images": [3], "annotations": []}', r"images\[0\] is 3; expected an object with an id"),
        ("a.json", '{"images": [{}], "annotations": []}', r"images\[0\] is {}; expected an object with an id"),
        (
            "a.json",
            '{"images": [{"id": 1}, {"id": 1, "a": 2}], "annotations": []}',
            r"images\[1\].id is 1, which another",
        ),
        (
            "a.json",
            '{"images": [{"id": 1, "caption": "a"}], "annotations": [3]}',
            r"annotations\[0\] is 3; expected an annotation",
        ),
        (
            "a.json",
            '{"images": [{"id": 1}], "annotations": [{"caption": "a", "image_id": [1]}]}',
            r"annotations\[0\].image_id is \[1\]; expected an id",
        ),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"caption": "a", "image_id": 1}]}',
            "no annotation with a caption has a bbox or a segmentation",
        ),
        (
            "a.json",
            json.dumps({"images": [IMAGE], "annotations": [annotation(caption=c, image_id=5) for c in "ab"]}),
            r"annotations\[1\].id is 7, which another annotation has; expected it once",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", annotation(segmentation={"size": [2, 3], "counts": [7, -1]}))]}),
            r"segmentation.counts is -1; expected a whole number from 0",
        ),
        (
            "a.json",
            json.dumps({"val": [generalized(1, "a", annotation(segmentation={"size": [-2, -3], "counts": [6]}))]}),
            r"segmentation.size is -2; expected a whole number from 0",
        ),
    ],
)
def test_errors_name_the_place(tmp_path: Path, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        reading.read(tmp_path / name)


def test_jsonl_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "own.jsonl"
    path.write_bytes('{"image": "a.jpg", "expressions": "döner"}'.encode("latin1"))
    with pytest.raises(InputError, match=r"own.jsonl: line 1 is not valid JSON in UTF-8"):
        reading.read(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": []}, "reference 1.sentences holds 0; expected at least one, each an object"),
        ({"sentences": ["a"]}, "reference 1.sentences holds 1; expected at least one, each an object"),
        ({"image_id": [5]}, r"reference 1.image_id is \[5\]; expected an id, a string or a number"),
        ({"ann_id": [[1]]}, r"reference 1.ann_id is \[1\]; expected an id"),
        ({"ann_id": None}, "reference 1.ann_id is missing or null; expected an id"),
        ({"ann_id": 9}, "reference 1: ann_id 9 is not in instances.json"),
        ({"ann_id": [], "no_target": False}, r"ann_id is \[\], and no_target is false; expected the ids of objects"),
        ({"ann_id": [1], "no_target": True}, r"has no_target and the objects \[1\]; expected ann_id -1"),
    ],
)
def test_errors_in_references_name_the_place(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(InputError, match=message):
        reading.read(refer_folder(tmp_path, [reference("train", 1, "A") | changes]))


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ({"images": [{}], "annotations": []}, r"instances.json: images\[0\] is {}; expected an object with an id"),
        ({"images": 3, "annotations": []}, "instances.json: images is 3; expected a list"),
        (
            {"images": [], "annotations": [{"id": 1}, {"id": 1, "a": 2}]},
            r"annotations\[1\].id is 1, which another entry",
        ),
    ],
)
def test_errors_in_instances_name_the_place(tmp_path: Path, instances: dict, message: str):
    path = refer_folder(tmp_path, [reference("train", 1, "A")])
    write(tmp_path / "instances.json", instances)
    with pytest.raises(InputError, match=message):
        reading.read(path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "instance_index.json is not valid JSON"),
        ("[]", "instance_index.json: val is missing or null; expected a dict of splits"),
        ('{"val": 3}', "instance_index.json: val is 3; expected a dict of splits"),
        ('{"val": [3]}', r"instance_index.json: val\[0\] is 3; expected \[start, end\]"),
        ('{"val": [[0, 1.5]]}', r"val\[0\] is \[0, 1.5\]; expected \[start, end\], whole numbers"),
        ('{"val": [[-1, 1]]}', r"val\[0\] is \[-1, 1\]; expected"),
    ],
)
def test_errors_in_the_index_name_the_place(tmp_path: Path, index: str, message: str):
    (tmp_path / "instance_index.json").write_text(index)
    with pytest.raises(InputError, match=message):
        reading.read(write(tmp_path / "instance.json", {"val": [[generalized(5, "a", annotation())]]}))


def test_an_index_may_reach_beyond_the_split(tmp_path: Path):
    write(tmp_path / "instance_index.json", {"val": [[0, 10**15]]})
    (record,) = reading.read(write(tmp_path / "instance.json", {"val": [[generalized(5, "a", annotation())]]}))
    assert record.group == "val/group0"


def test_kept_problems_leave_the_other_records(tmp_path: Path):
    entries = [generalized(5, []), generalized(5, "a", annotation()), generalized(5, "b", None), 3]
    problems = Problems(keep=True)
    (record,) = reading.read(write(tmp_path / "instance.json", {"val": entries}), problems)
    assert record.expressions == ("a",)
    assert [where for where, _ in problems.found] == [f"instance.json val[{i}]" for i in (0, 2, 3)]
    assert problems.found[0][1] == "expressions is []; expected a string or a list of strings"


def test_a_missing_file_is_an_error(tmp_path: Path):
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        reading.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("annotations/grefs/instance.json", {"train": 255, "val": 37, "testA": 36, "testB": 37}),
        ("annotations/ref-zom/instance.json", {"train": 255, "test": 110}),
        (
            "annotations/rrefcoco/instance.json",
            {"train": 624, "val_rrefcoco": 624, "val_rrefcoco+": 624, "val_rrefcocog": 624},
        ),
        (
            "annotations/mixed-seg/instances_nogoogle_withid.json",
            {
                "val_refcoco_unc": 45,
                "testA_refcoco_unc": 18,
                "testB_refcoco_unc": 33,
                "val_refcocoplus_unc": 48,
                "testA_refcocoplus_unc": 16,
                "testB_refcocoplus_unc": 32,
                "val_refcocog_umd": 24,
            },
        ),
        ("refer/refcoco/refs(unc).p", {"val": 45, "testA": 18, "testB": 33}),
        ("refer/refcocog/refs(umd).p", {"val": 24}),
    ],
)
def test_the_real_sample_reads_whole(name: str, splits: dict[str, int]):
    records = reading.read(oracle.data("refcoco_real") / name)
    assert {split: len(found) for split, found in by_split(records).items()} == splits
    assert len({(record.split, record.id) for record in records}) == len(records)


def test_the_grefer_layout_of_the_real_sample_says_what_its_json_says():
    root = oracle.data("refcoco_real")
    ours = reading.read(root / "refer/grefcoco/grefs(unc).json")
    theirs = reading.read(root / "annotations/grefs/instance.json")
    assert len(ours) == 365

    def facts(records: list[Record]) -> dict:
        return {
            r.id: (r.picture, r.width, r.height, r.expressions, r.split, {i.box for i in r.instances}) for r in records
        }

    assert facts(ours) == facts(theirs)
