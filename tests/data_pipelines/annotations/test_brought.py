"""Files as people bring them: other layouts, other forms of values, other names of pictures. Read faithfully, or refused."""

import base64
import gzip
import json
import os
import pickle
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipelines import masks
from data_pipelines.annotations.problems import Problem, Problems
from data_pipelines.annotations.reading import read, read_files
from data_pipelines.records import RLE, Instance, Record, by_split
from instancevg_jax.errors import InputError
from tests import oracle
from tests.data_pipelines.make import HEIGHT, POLYGON, WIDTH, annotation, generalized, picture

SQUARE = masks.to_rle(POLYGON, HEIGHT, WIDTH)
CODE = {"size": [HEIGHT, WIDTH], "counts": SQUARE.counts}
LINE: dict[str, Any] = {"image": "a.jpg", "expressions": "a dog", "objects": [{"box": [10, 10, 30, 30]}]}
RECORD = Record("x", "a.jpg", 0, 0, ("a dog",), (Instance((10, 10, 30, 30), None),), "train")
IMAGE = {"id": 5, "file_name": "5.jpg", "width": WIDTH, "height": HEIGHT}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def with_mask(folder: Path, mask: Any) -> Path:
    return write(folder / "a.jsonl", LINE | {"objects": [{"box": [10, 10, 30, 30], "mask": mask}]})


NAMES = ["a.jsonl", "a.JSONL", "a.ndjson", "a.jsonlines", "a.jsonl.gz", "a.json", "a.json.gz", "a.txt"]
LINES = [LINE | {"id": "x"}, LINE | {"id": "y", "width": "200", "height": None, "split": None, "group": None}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "\n".join(map(json.dumps, LINES)),
        "\r\n\r\n".join(map(json.dumps, LINES)) + "\r\n",
        json.dumps(LINES),
        json.dumps(LINES, indent=2),
        "[" + ",\n".join(map(json.dumps, LINES)) + "]",
    ],
    ids=["lines", "lines of Windows", "list", "indented list", "list with a record per line"],
)
def test_own_records_in_files_of_any_name_and_encoding(tmp_path: Path, name: str, text: str):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"):
        for compress in (bytes, gzip.compress):  # whatever the name says
            (tmp_path / name).write_bytes(compress(text.encode(encoding)))
            first, second = read(tmp_path / name)
            assert first == RECORD
            assert (second.id, second.width, second.height, second.split, second.group) == ("y", 0, 0, "train", "")


@pytest.mark.parametrize("indent", [None, 1])
def test_documents_in_files_called_json_lines(tmp_path: Path, indent: int | None):
    for content in (LINE | {"id": "x"}, {"images": [IMAGE], "annotations": [annotation(caption="a dog", image_id=5)]}):
        (tmp_path / "a.jsonl").write_text(json.dumps(content, indent=indent))
        (record,) = read(tmp_path / "a.jsonl")
        assert record.expressions == ("a dog",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1....", "looks like a Parquet file; export it as JSON lines"),
        ("a.csv", b"image,sentence\n", "looks like a table; export it as JSON lines"),
        ("a.json", b"PK\x03\x04", "looks like a zip archive; unpack it"),
        ("a.jsonl.bz2", b"BZh91AY", "looks like a file compressed by bzip2; decompress it"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "looks like a file compressed by zstd; decompress it"),
        ("a.tar.gz", gzip.compress(bytes(257) + b"ustar", mtime=0), "looks like a tar archive; unpack it"),
        ("a.json.gz", b"\x1f\x8b123", "damaged, its compressed data cannot be read"),
        ("a.jsonl.gz", gzip.compress(json.dumps(LINE).encode(), mtime=0)[:-9], "damaged, its compressed data cannot be read"),
        ("a.json", b"\x89PNG\r\n", "looks like a picture; the folder of pictures is --images"),
        ("a.db", b"SQLite format 3\0", "looks like an SQLite database"),
        ("a.txt", b"0 0.5 0.5 0.25 0.125\n1 0.5 0.5 1 1", "looks like labels of YOLO; export them as COCO"),
        ("a.txt", b"0\t0.5\t0.5\t0.25\t0.125\r\n", "looks like labels of YOLO; export them as COCO"),
        ("a.txt", b"3 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "looks like labels of YOLO; export them as COCO"),
        ("data.yaml", b"names:\n  - dog\n", "not valid JSON .*; it begins with 'names:"),
        ("a.json", "caf\xe9".encode("utf-16"), "not valid JSON .*; it begins with 'café'"),
        ("a.json", b'{"a": "caf\xe9"}', "not valid JSON in UTF-8 .*; save it as UTF-8"),
        ("a.jsonl", '{"image": "a'.encode("utf-16")[:-1], "a.jsonl: its text cannot be read .*; save it as UTF-8"),
        ("a.json", b'{"a": [1, 2,], "b": 1}', r"not valid JSON \((.*; a comma before a closing bracket|Illegal trailing comma)"),
        ("a.json", b'{"a": [1] // list\n}', "not valid JSON .*; JSON has no comments"),
        ("a.json", b"{'a': [1]}", "not valid JSON .*; single quotes, as Python prints them; json.dumps writes JSON"),
        ("a.json", b'{"images": [{"file_name": "a', "not valid JSON .*; the end is missing, as in an incomplete download"),
        ("a.json", b'{"images": [{"file_name": 5}', "not valid JSON .*; the end is missing, as in an incomplete download"),
        ("a.json", b'{"a": 1}{"a": 2}', "not valid JSON .*; more than one value; JSON lines have one per line"),
        ("a.json", pickle.dumps([]), "looks like a pickle; give it a name that ends in .p"),
        ("refs(unc).p", b'[{"ref_id": 1}]', "looks like JSON; give it a name that ends in .json"),
        ("refs(unc).p", b"version https://git-lfs.github.com/spec/v1", "looks like a Git LFS pointer"),
        ("refs(unc).p", b"\n<!DOCTYPE html>", "looks like XML or HTML"),
        ("refs(unc).p", pickle.dumps([{"a": 1}])[:-3], "not a readable pickle, or a damaged one"),
        ("a.json", b"<annotation>", "looks like XML or HTML"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1", "looks like a Git LFS pointer; fetch the file"),
        ("a.json", b'[{"id": 1, "conversations": []}]', r"looks like conversations .* \(LLaVA\), which is not read"),
        ("a.json", b'{"version": "5", "shapes": [], "imagePath": ""}', "looks like labelme's layout"),
        ("a.json", b'[{"image_id": 1, "category_id": 1, "bbox": [], "score": 1}]', "looks like results of a detector"),
        ("a.json", b'{"a.png123": {"filename": "a.png", "regions": [], "file_attributes": {}}}', "looks like VGG Image Ann"),
        ("a.json", b'{"_via_settings": {}, "_via_img_metadata": {}}', "looks like VGG Image Annotator's layout"),
        ("a.json", b'[{"id": 1, "data": {}, "annotations": [{"result": []}]}]', "looks like Label Studio's export"),
        ("a.json", b'{"info": {}, "categories": {}, "items": []}', "looks like Datumaro's layout"),
        ("a.json", b'[{"image": "a.png", "annotations": [{"coordinates": {}}]}]', "looks like CreateML's layout"),
        ("a.json", b'{"size": {"height": 4}, "objects": [{"classTitle": "a"}]}', "looks like Supervisely's layout"),
        ("a.json", b'[{"id": 1, "regions": [{"phrase": "a dog"}]}]', "looks like Visual Genome's regions"),
        ("a.jsonl", b'{"image": "a.png", "prefix": "detect", "suffix": "<loc>"}', "line 1 looks like prompts for a language model"),
        ("a.jsonl", b'{"messages": [], "images": []}', "line 1 looks like conversations for instruction tuning"),
        ("config.json", b'{"model_type": "beit"}', "looks like the config of a Hugging Face model"),
        ("a.json", b'{"images": [], "categories": []}', "looks like COCO's layout without annotations"),
        ("a.json", b'{"annotations": [], "categories": []}', "looks like COCO's layout without images"),
        ("a.json", b'[{"a": 1}]', "no known layout; expected a dict of splits"),
        ("a.json", b'{"train": []}', "the file holds no record; expected at least one"),
        ("a.json", b"[]", "no known layout"),
        ("a.jsonl", b'{"image": "a.jpg", "expressions": "a"}', r'line 1 has no "objects"; expected a list of them, \[\] where'),
        ("a.json", b"", "the file is empty; expected annotations"),
        ("a.jsonl", b"\xef\xbb\xbf \n\n", "the file is empty; expected annotations"),
        ("a.json.gz", gzip.compress(b"", mtime=0), "the file is empty; expected annotations"),
    ],
)  # fmt: skip
def test_what_is_not_read_says_what_it_looks_like(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_names_of_no_file(tmp_path: Path):
    with pytest.raises(InputError, match="is a folder; expected a file of annotations"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="is no regular file; expected a file of annotations"):
        read(tmp_path / "pipe")
    for name in ("nowhere.json", tmp_path / "link", "a" * 300, "a/" * 3000 + "b"):
        with pytest.raises(InputError, match=r"no such file|File name too long"):
            read(name)


@pytest.mark.parametrize(
    "mask",
    [
        POLYGON,
        POLYGON[0],
        [[10, 10], [30, 10], [30, 30], [10, 30]],
        [list(map(str, POLYGON[0]))],
        CODE,
        CODE | {"size": [str(HEIGHT), WIDTH], "counts": str(SQUARE.counts.encode())},
        [CODE],
        [CODE, CODE],
        json.dumps(POLYGON),
        json.dumps(CODE),
        {"size": [HEIGHT, WIDTH], "counts": [410, *[20, 20] * 19, 20, 1210]},
        {"size": [HEIGHT, WIDTH], "counts": str([410.0, *[20, 20] * 19, 20, 1210])},
        [[*POLYGON[0], *POLYGON[0][:2]]],  # closed
    ],
)
def test_forms_of_masks(tmp_path: Path, mask: Any):
    (record,) = read(with_mask(tmp_path, mask))
    segmentation = record.instances[0].segmentation
    assert segmentation is not None
    assert masks.to_rle(segmentation, HEIGHT, WIDTH) == SQUARE


def test_a_list_of_rles_is_their_union(tmp_path: Path):
    parts = [masks.to_rle([[x, 5, x + 9, 5, x + 9, 9]], HEIGHT, WIDTH) for x in (3, 6, 30)]
    codes = [{"size": [p.height, p.width], "counts": p.counts} for p in parts]
    write(
        tmp_path / "instances.json",
        {"images": [IMAGE], "annotations": [annotation(id=1, image_id=5, segmentation=codes)]},
    )
    reference = {
        "image_id": np.int64(5),
        "ref_id": 1,
        "split": "val",
        "ann_id": np.int32(1),
        "sentences": [{"raw": "a dog", "sent_id": 1}],
    }
    for protocol in range(6):
        for content in ([reference], (reference,)):
            (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(content, protocol))
            assert len(read(tmp_path / "refs(unc).p")) == 1
    (record,) = read(tmp_path / "refs(unc).p")
    union = record.instances[0].segmentation
    assert isinstance(union, RLE)
    assert (masks.decode(union) == np.maximum.reduce([masks.decode(p) for p in parts])).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[[10, 10], [30, 10], [30, 30]]], r"mask\[0\] is made of points, \[10, 10\]; expected a flat list x, y, x, y"),
        ([[{"x": 1, "y": 2}]], r"mask\[0\] is made of points"),
        ([{"x": 1, "y": 2}], r"mask\[0\] is made of points, {'x': 1, 'y': 2}; expected a flat list x, y, x, y"),
        ([{"a": 1}], r"mask\[0\].size is missing or null; expected \[height, width\]"),
        ("410 20 430 20", "mask is '410 20 430 20', which looks like pairs of start and length; expected COCO's RLE"),
        ([[0] * 60, *[[0, 255] * 30] * 9], "mask looks like a bitmap or normalized coordinates"),
        ([[False, True]] * 3, "mask looks like a bitmap or normalized coordinates"),
        (["10,10,30,10,30,30"], r"a coordinate of .*mask\[0\] is '10,10,30,10,30,30'; expected a number"),
        ([CODE, CODE | {"size": [WIDTH, HEIGHT]}], "the RLE is of a picture of 40 x 60; expected 60 x 40"),
        ([CODE, [1, 2]], r"mask\[1\] is \[1, 2\]; expected an RLE"),
        (CODE | {"size": [2**32, 1]}, "mask: a size of 1 x 4294967296 pixels; expected at least 1 x 1 and at most"),
        (CODE | {"size": [2**31, 2**31]}, "expected at least 1 x 1 and at most"),
        (CODE | {"size": [0, 5]}, "mask: a size of 5 x 0 pixels; expected"),
        (CODE | {"counts": [[0, 100]]}, r"mask.counts is \[0, 100\]; expected a number"),
        (CODE | {"counts": "1 100 5 20"}, "mask.counts is '1 100 5 20'; expected COCO's compressed run lengths"),
        (CODE | {"counts": [0, 100]}, r"mask: the RLE's runs sum to 100; expected 40 \* 60"),
        ([[1, 2, 3, 1e6, 5, 6]], r"a coordinate of .*mask\[0\] is 1000000.0; expected at most 100,000 pixels"),
        (
            [[0, 1, 1, 0], [0, 1, 1, 0]],
            r"mask looks like a bitmap or normalized coordinates; expected polygons",
        ),
        ({}, r"mask.size is missing or null; expected \[height, width\]"),
        ("masks/none.png", "is 'masks/none.png', taken for the file of a mask, which does not exist; expected it in"),
        ("../a.png", "does not exist; expected it in a path within the folder of pictures"),
        ("data:image/png,abc", "is a data URI that begins with 'data:image/png'; expected data:image/png;base64"),
        ("data:image/png;base64,!", "the data URI is not valid base64"),
        ("data:image/png;base64,AAAA", "is not a picture that can be read"),
        (True, "mask is True; expected polygons, an RLE, the file name of a mask, or null"),
    ],
)
def test_masks_that_are_refused(tmp_path: Path, mask: Any, message: str):
    with pytest.raises(InputError, match=message):
        read(with_mask(tmp_path, mask))


def test_masks_that_are_pictures(tmp_path: Path):
    square = masks.decode(SQUARE)
    transparent = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    transparent[..., 3] = square * 200
    palette = Image.fromarray(square * 3)
    palette.putpalette([0, 0, 0, 9, 9, 9, 1, 1, 1, 200, 0, 0])
    kinds = {
        "zero-one": Image.fromarray(square),
        "black-white": Image.fromarray(square * 255),
        "bits": Image.fromarray(square * 255).convert("1"),
        "rgb": Image.fromarray(np.stack([square * 9, square * 255, square], -1)),
        "alpha": Image.fromarray(transparent),
        "palette": palette,
    }
    for name, image in kinds.items():
        for folder in (tmp_path, tmp_path / "img"):
            path = folder / f"masks/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            uri = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
            for mask in (f"masks/{name}.png", f"masks\\{name}.png", uri):
                (record,) = read(with_mask(tmp_path, mask), images=tmp_path / "img")
                assert record.instances[0].segmentation == SQUARE, (name, mask)
            path.unlink()
    Image.fromarray(square + np.eye(HEIGHT, WIDTH, dtype=np.uint8)).save(tmp_path / "two.png")
    with pytest.raises(
        InputError, match=r"the mask two.png has several values besides 0, such as 1 and 2; expected one object"
    ):
        read(with_mask(tmp_path, "two.png"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"width": "60", "height": " 40.0 "}, (60, 40)),
        ({"width": 60.0, "height": 40}, (60, 40)),
        ({"width": None, "height": 40}, (0, 0)),
        ({"width": 60}, (0, 0)),
        ({"width": "", "height": ""}, (0, 0)),
        ({"width": 0, "height": 40}, (0, 0)),
        ({}, (0, 0)),
    ],
)
def test_sizes_are_left_to_the_picture_where_they_are_not_stated(tmp_path: Path, size: dict, expected: tuple[int, int]):
    sizeless = {key: value for key, value in IMAGE.items() if key not in ("width", "height")} | size
    content = {"images": [sizeless], "annotations": [annotation(caption="a dog", image_id=5)]}
    (record,) = read(write(tmp_path / "a.json", content))
    assert (record.width, record.height) == expected
    (record,) = read(write(tmp_path / "a.jsonl", LINE | size))
    assert (record.width, record.height) == expected


@pytest.mark.parametrize(
    "size", [{"width": True, "height": 1}, {"width": "wide", "height": 1}, {"width": 1.5, "height": 1}]
)
def test_sizes_that_are_refused(tmp_path: Path, size: dict):
    with pytest.raises(InputError, match=r"line 1\.width is .*; expected a"):
        read(write(tmp_path / "a.jsonl", LINE | size))
    with pytest.raises(InputError, match=r"line 1 states a size of 8589934592 x 1 pixels; expected"):
        read(write(tmp_path / "a.jsonl", LINE | {"width": 2**33, "height": 1}))


ACCENT = "caf\u00e9 \u212b.png"


@pytest.mark.parametrize(
    ("stated", "there"),
    [
        ("sub\\a.png", "sub/a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        ("img/a.png", "a.png"),
        ("img\\sub\\a.png", "sub/a.png"),
        (unicodedata.normalize("NFC", ACCENT), unicodedata.normalize("NFD", ACCENT)),
        (unicodedata.normalize("NFD", ACCENT), unicodedata.normalize("NFC", ACCENT)),
        ("a%20b%C3%A9.png", "a bé.png"),
        ("a.JPG", "a.jpg"),
        ("A b.png ", "a b.png"),
        ("COCO_train2014_000000000309_1161269.jpg", "000000000309.jpg"),
        ("a.jpg", "a.JPG"),
        ("img_1.png", "IMG_1.png"),
        ("Sub\\IMG.PNG", "sub/img.png"),
        ("data/img/sub/a.png", "sub/a.png"),
        ("a.jpeg", "a.jpg"),
        ("COCO_train2014_000000000009.jpg", "000000000009.jpg"),
        ("COCO_val2014_000000000009.jpg", "train2017/000000000009.jpg"),
        ("000000000009.jpg", "COCO_val2014_000000000009.jpg"),
        ("train2014/COCO_train2014_000000000009.jpg", "COCO_train2014_000000000009.jpg"),
        ("val2017\\000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"),
        ("COCO_train2014_000000036979.jpg", "36979.jpg"),
    ],
)
def test_pictures_are_found_under_other_spellings(tmp_path: Path, stated: str, there: str):
    images = tmp_path / "data" / "img"
    (images / there).parent.mkdir(parents=True, exist_ok=True)
    (images / there).touch()
    problems = Problems()
    (record,) = read(write(tmp_path / "a.jsonl", LINE | {"image": stated}), problems, images=images)
    assert record.picture == there
    assert problems.notes == [Problem(stated, f"picture found as {there}")]
    (record,) = read(tmp_path / "a.jsonl")
    assert record.picture == stated


def test_pictures_that_exist_or_exist_nowhere_keep_their_names(tmp_path: Path):
    (tmp_path / "img").mkdir()
    for name in ("a\\b.png", "b.png"):
        (tmp_path / "img" / name).touch()
    problems = Problems()
    for name in ("D.png", "d.PNG"):  # either may be meant
        (tmp_path / "img" / name).touch()
    for stated in ("a\\b.png", "c.png", "%2e%2e/a.jsonl", "d.png"):
        (record,) = read(write(tmp_path / "a.jsonl", LINE | {"image": stated}), problems, images=tmp_path / "img")
        assert record.picture == stated
    assert not problems.notes


@pytest.mark.parametrize(
    "name", ["/a.png", "C:\\a.png", "C:a.png", "\\a.png", "..\\a.png", "a/../../b", "https://a/b.png", "", "a\0b"]
)
def test_names_of_pictures_that_are_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="expected a file name within the folder of pictures"):
        read(write(tmp_path / "a.jsonl", LINE | {"image": name}))


def detections(**changes: Any) -> dict[str, Any]:
    names = [{"id": 1, "name": "dog"}, {"id": 2, "name": "red cat"}, {"id": 3, "name": "cow"}]
    found = [annotation(id=i, image_id=5, category_id=c) for i, c in enumerate([1, 2, 1])]
    return {"images": [IMAGE], "annotations": found, "categories": names} | changes


def test_categories_as_sentences(tmp_path: Path):
    path = write(tmp_path / "a.json", detections())
    with pytest.raises(InputError, match="this looks like a detection export: --captions categories makes"):
        read(path)
    assert [(r.expressions, len(r.instances)) for r in read(path, captions="categories")] == [
        (("dog",), 2),
        (("red cat",), 1),
    ]
    with pytest.raises(InputError, match=r"annotations\[0\].category_id is 9; no readable category has this id"):
        read(write(path, detections(annotations=[annotation(image_id=5, category_id=9)])), captions="categories")
    with pytest.raises(InputError, match="no detection export"):
        read(write(path, {"val": [generalized(5, "a", annotation())]}), captions="categories")
    with pytest.raises(InputError, match="line 1 is no detection; --captions categories is for detection exports"):
        read(write(tmp_path / "a.jsonl", LINE), captions="categories")
    with pytest.raises(InputError, match="--captions is 'x'; expected categories"):
        read(path, captions="x")


def test_an_annotation_of_no_picture_is_listed_and_costs_no_other(tmp_path: Path):
    content = detections()
    content["annotations"].append(annotation(id=9, image_id=6))
    problems = Problems(keep=True)
    assert len(read(write(tmp_path / "a.json", content), problems, captions="categories")) == 2
    assert problems.found == [Problem("a.json annotations[3]", "image_id is 6; no readable image has this id")]


def test_captions_with_a_broken_object_are_dropped_whole(tmp_path: Path):
    found = [
        annotation(id=1, image_id=5, caption="one"),
        annotation(id=2, image_id=5, caption="broken", bbox=[]),
        annotation(id=3, image_id=5, caption="two"),
        annotation(id=4, image_id=5, caption="two", segmentation=[[[10, 20], [30, 20], [30, 30]]]),
        annotation(id=5, image_id=5, caption="no box", bbox=None, segmentation=None),
        annotation(id=6, image_id=5, caption="contradiction", category_id=-1),
        {"id": 7, "image_id": 5, "caption": "nothing", "category_id": -1},
        annotation(id=10, image_id=5, caption=""),
        annotation(id=11, image_id=5),
        {"id": 8, "image_id": 5, "caption": "half nothing"},
        annotation(id=9, image_id=5, caption="half nothing"),
    ]
    problems = Problems(keep=True)
    records = read(write(tmp_path / "a.json", {"images": [IMAGE], "annotations": found}), problems)
    assert [(r.expressions[0], len(r.instances)) for r in records] == [("one", 1), ("nothing", 0), ("", 1)]
    assert [(p.where, p.what.split(";")[0]) for p in problems.found] == [
        ("a.json image 5, 'broken'", "annotations[1].bbox is []"),
        ("a.json image 5, 'two'", "annotations[3].segmentation[0] is made of points, [10, 20]"),
        ("a.json image 5, 'no box'", "annotations[4] has a category, but neither bbox nor segmentation"),
        ("a.json image 5, 'contradiction'", "annotations[5].category_id is -1, which means no object"),
        ("a.json image 5, 'half nothing'", "annotations[9] has neither a box nor a mask"),
    ]
    # an annotation that may belong to several captions takes them all with it
    for broken, left in (({"caption": None}, []), ({"image_id": None}, ["one"]), ({"image_id": 77}, ["one"])):
        found = [annotation(id=1, image_id=5, caption="one"), annotation(id=2, image_id=5, caption="two")]
        found.append(annotation(id=3, image_id=5, caption="two") | broken)
        problems = Problems(keep=True)
        records = read(write(tmp_path / "a.json", {"images": [IMAGE], "annotations": found}), problems)
        assert [r.expressions[0] for r in records] == left
        assert len(problems.found) == 3 - len(left)


def test_mdetr_captions(tmp_path: Path):
    images = [
        IMAGE | {"id": i, "caption": caption}
        for i, caption in enumerate(["two dogs", "a cat", "a cow", "a man and a hat"])
    ]
    nothing = {"category_id": -1, "bbox": [0, 0, 0, 0], "iscrowd": -1, "empty": True}
    found = [annotation(id=i, image_id=0, tokens_positive=[[0, 3]]) for i in range(2)]
    found += [{"id": 2, "image_id": 1} | nothing]
    found += [annotation(id=i, image_id=3, tokens_positive=[[i, i + 4]]) for i in (3, 4)]
    path = write(tmp_path / "finetune_grefcoco_testA.json", {"images": images, "annotations": found})
    problems = Problems(keep=True)
    records = read(path, problems)
    assert [(r.expressions[0], r.split, len(r.instances)) for r in records] == [
        ("two dogs", "testA", 2),
        ("a cat", "testA", 0),
    ]
    assert [p.what.split(";")[0] for p in problems.found] == [
        "image 3, 'a man and a hat' has annotations of several phrases (tokens_positive)",
        "image 2, 'a cow' has no annotation",
    ]


def test_odvg(tmp_path: Path):
    regions = [
        {"bbox": [10, 10, 30, 30], "phrase": "a dog", "tokens_positive": [[0, 5]]},
        {"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "phrase": ["a dog", "a cat"]},
        {"bbox": [10, 10, 30, 30], "phrase": "a cow", "mask": CODE},
    ]
    line = {"filename": "a.jpg", "height": HEIGHT, "width": WIDTH, "grounding": {"caption": "...", "regions": regions}}
    records = read(write(tmp_path / "a.jsonl", line))
    assert [(r.expressions[0], [i.box for i in r.instances]) for r in records] == [
        ("a dog", [(10, 10, 30, 30), (1, 2, 3, 4), (5, 6, 7, 8)]),
        ("a cat", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("a cow", [(10, 10, 30, 30)]),
    ]
    assert records[2].instances[0].segmentation == SQUARE
    assert (records[0].picture, records[0].width) == ("a.jpg", WIDTH)
    found = [{"bbox": [1, 2, 3, 4], "label": 0, "category": name} for name in ("dog", "cat", "dog")]
    path = write(tmp_path / "b.jsonl", {"filename": "a.jpg", "detection": {"instances": found}})
    with pytest.raises(
        InputError, match="line 1 looks like a detection of ODVG, which has no sentences; --captions categories"
    ):
        read(path)
    assert [(r.expressions[0], len(r.instances)) for r in read(path, captions="categories")] == [("dog", 2), ("cat", 1)]


def test_pictures_of_simvgs_mixture(tmp_path: Path):
    entry = {"image_id": 36979, "width": WIDTH, "height": HEIGHT, "expressions": ["a dog"], "bbox": [10, 10, 20, 20]}
    sources = ["flickr", "saiaprtc12", "vg", "coco", "refcoco_unc"]
    path = write(tmp_path / "instances.json", {"train": [entry | {"data_source": s} for s in sources]})
    picture(tmp_path / "img/vg", "36979.jpg")
    names = ["36979.jpg", "36979.jpg", "vg/36979.jpg", *["COCO_train2014_000000036979.jpg"] * 2]
    assert [r.picture for r in read(path, images=tmp_path / "img")] == names
    assert read(path)[0].instances == (Instance((10, 10, 30, 30), None),)


def test_the_mixture_of_the_real_sample():
    root = oracle.data("refcoco_real")
    paths = [root / "refer" / name for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p")]
    records = read_files(paths, merge="refcoco")
    theirs = read(root / "annotations/mixed-seg/instances_nogoogle_withid.json")
    assert len({(record.split, record.id) for record in records}) == len(records)

    def facts(found: list[Record]) -> dict[str, list[tuple]]:
        splits = by_split(found)
        return {s: sorted((r.picture, r.expressions, r.instances[0].id) for r in splits[s]) for s in splits}

    assert facts(records) == facts(theirs)
    message = r"both have a split 'testA'; expected --merge refcoco, which names .* or --merge join, which joins them"
    with pytest.raises(InputError, match=message):
        read_files(paths)
    assert len(read_files(paths, merge="join")) == len(records)


def test_several_files(tmp_path: Path):
    content = {"train": [generalized(5, "a", annotation())], "val": [[generalized(5, "a", annotation())]]}
    for folder in ("refcoco-unc", "refcocoplus-unc", "refcocog-google", "other", "refcoco_unc"):
        write(tmp_path / folder / "instances.json", content)
        write(tmp_path / folder / "instance_index.json", {"val": [[0, 1]]})
    paths = [
        tmp_path / f / "instances.json"
        for f in ("refcoco-unc", "refcocoplus-unc", "refcocog-google", "other", "refcoco_unc")
    ]
    splits = by_split(read_files(paths[:3], merge="refcoco"))
    assert list(splits) == ["train", "val_refcoco_unc", "val_refcocoplus_unc", "val_refcocog_google"]
    assert [r.id for r in splits["train"]] == [
        f"{d}/train[0]" for d in ("refcoco_unc", "refcocoplus_unc", "refcocog_google")
    ]
    assert len({r.group for r in read_files(paths[:3], merge="join") if r.split == "val"}) == 3
    with pytest.raises(InputError, match=r"other/instances.json: --merge refcoco cannot tell which data set this is"):
        read_files(paths[2:4], merge="refcoco")
    with pytest.raises(InputError, match="both have a split 'val_refcoco_unc'"):
        read_files([paths[0], paths[4]], merge="refcoco")
    with pytest.raises(InputError, match="--merge is 'x'; expected one of refcoco, join"):
        read_files(paths, merge="x")
    for path in paths[:2]:
        write(path, {"train": content["train"]})
    assert len(read_files(paths[:2])) == 2


def test_damaged_masks_end_in_no_crash_of_native_code():
    for height, width in ((2**32, 1), (1, 2**32), (2**31, 2), (0, 4), (-1, 4)):
        for draw in (
            lambda: masks.to_rle(POLYGON, height, width),  # noqa: B023
            lambda: masks.to_rle(RLE(height, width, "0"), height, width),  # noqa: B023
            lambda: masks.decode(RLE(height, width, "0")),  # noqa: B023
            lambda: masks.decode_resized(RLE(height, width, "0"), 4, 4),  # noqa: B023
            lambda: masks.from_box((0, 0, 1, 1), height, width),  # noqa: B023
        ):
            with pytest.raises(InputError, match="expected at least 1 x 1 and at most 536,870,912 pixels"):
                draw()
    assert cv2.countNonZero(masks.decode(masks.union([SQUARE, SQUARE]))) == masks.area(SQUARE)
