"""Examples equal the original's loaders (F8): ids and masks bit for bit, boxes exactly, pictures to 1e-6."""

import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import jax
import numpy as np
import pycocotools.mask
import pytest

from data_pipelines import masks
from data_pipelines.annotations import reading
from data_pipelines.cache import PictureCache
from data_pipelines.records import RLE, Instance, Record, select
from data_pipelines.transforms import Alternatives, Example, Transform, box_of, clip_boxes, scale_boxes
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch
from tests import oracle

SIZES = {1: (48, 80), 2: (101, 61), 3: (64, 64), 4: (37, 90)}
COUNTS = {"GRefCOCO": 5, "RefZOM": 5, "RRefCOCO": 5, "MixedSeg": 4}
SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")


def transform_of(tokenizer: Tokenizer, size: int = 64, max_tokens: int = 50, **options) -> Transform:
    return Transform(tokenizer, size, size, max_tokens, options.pop("max_targets", 4), **options)


def batched(transform: Transform, example: Example) -> Batch:
    """The example as a batch has it, padded and normalized, without the batch dimension."""
    return jax.tree.map(lambda x: x[0], transform.stack([example]))


def fixture_records(tmp_path: Path, family: str) -> list[Record]:
    """The family's annotations of F8, read as a file of that family is."""
    path = tmp_path / "instance.json"
    path.write_text(json.dumps(json.loads(oracle.path("fixtures/f8_annotations.json").read_text())[family]))
    return reading.read(path)


def fixture_picture(record: Record) -> np.ndarray:
    image_id = int(record.picture.split("_")[-1].removesuffix(".jpg"))
    return np.ascontiguousarray(oracle.recipe().make_picture(image_id, *SIZES[image_id])[..., ::-1])


def unpack(bits: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, count=height * width).reshape(*bits.shape[:-1], height, width).astype(bool)


@pytest.mark.parametrize("size", [64, 320])
@pytest.mark.parametrize("family", COUNTS)
def test_examples_equal_the_originals(tmp_path: Path, tokenizer: Tokenizer, family: str, size: int):
    fixture = oracle.fixture(f"f8_pipeline{size}")
    transform = transform_of(tokenizer, size, 20 if family == "MixedSeg" else 50)
    records = fixture_records(tmp_path, family)
    assert len(records) == COUNTS[family]
    for i, record in enumerate(records):
        expected = {k.split("_", 1)[1]: v for k, v in fixture.items() if k.startswith(f"{family}::{i}_")}
        example = batched(transform, transform.example(record, record.expressions[0], fixture_picture(record)))
        if "img" in expected:
            step = size // expected["img"].shape[-1]
            ours = example.images[::step, ::step]
            np.testing.assert_allclose(ours, expected["img"].transpose(1, 2, 0), atol=1e-6, rtol=0)
        np.testing.assert_array_equal(example.token_ids, expected["ids"])
        np.testing.assert_array_equal(example.token_mask, expected["mask"] == 0)
        targets = example.targets
        count = len(expected["parts_bits"])
        assert targets.valid.tolist() == [True] * count + [False] * (4 - count)
        if count:
            np.testing.assert_array_equal(targets.masks[:count], unpack(expected["parts_bits"], size, size))
        np.testing.assert_array_equal(targets.mask, unpack(expected["gt_mask_bits"], size, size))
        assert not targets.masks[count:].any()
        boxes = expected["gt_bbox_f64"].reshape(-1, 4)
        np.testing.assert_array_equal(resized_boxes(record, size), boxes)
        centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        np.testing.assert_allclose(targets.boxes[:count] * size, np.hstack([centre, extent]), atol=1e-4, rtol=1e-6)


def resized_boxes(record: Record, size: int) -> np.ndarray:
    """Boxes in pixels of the network's picture, as the original hands them on."""
    objects = select(record, "official").objects
    xyxy = np.array([box_of(o, record.height, record.width) for o in objects], np.float64).reshape(-1, 4)
    clipped = clip_boxes(xyxy, record.height, record.width)
    return scale_boxes(clipped, (record.height, record.width), (size, size))


def test_polygons_are_drawn_as_the_originals_bit_for_bit():
    fixture = oracle.fixture("f8_polygons")
    for i in range(4):
        drawn = masks.decode(masks.to_rle([fixture[f"poly_{i}_f64"].tolist()], 101, 90))
        np.testing.assert_array_equal(drawn.astype(bool), unpack(fixture[f"mask_{i}_bits"], 101, 90))
    both = masks.to_rle([fixture["poly_0_f64"].tolist(), fixture["poly_1_f64"].tolist()], 101, 90)
    np.testing.assert_array_equal(masks.decode(both).astype(bool), unpack(fixture["merge01_bits"], 101, 90))
    stored = masks.decode(RLE(48, 80, str(fixture["rle_counts"])))
    np.testing.assert_array_equal(stored.astype(bool), unpack(fixture["rle_bits"], 48, 80))


def drawn_masks() -> Iterator[np.ndarray]:
    """Masks of all sizes and kinds: empty, full, noise, a region at any edge."""
    rng = np.random.default_rng(0)
    for trial in range(60):
        height, width = (int(n) for n in rng.integers(1, 90, 2))
        noise = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        region = np.zeros_like(noise)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        region[top : top + 30, left : left + 30] = 1
        yield (noise, region, np.zeros_like(noise), np.ones_like(noise))[trial % 4]


def test_a_mask_drawn_at_another_size_equals_the_whole_one_resized():
    rng = np.random.default_rng(1)
    for mask in drawn_masks():
        rle = masks._from_coco(pycocotools.mask.encode(np.asfortranarray(mask)))
        for height, width in [mask.shape, (32, 32), *rng.integers(1, 120, (4, 2)).tolist()]:
            ours = masks.decode_resized(rle, height, width)
            np.testing.assert_array_equal(ours, masks.resize(masks.decode(rle), height, width))
            assert ours.flags.c_contiguous


@pytest.mark.parametrize(
    "counts", ["", "0", "P", "PPPPPPPPPPPPPPPP2", "04", "02o", "2222", "n4", "ee2Wf", "é", "6p", "\ud800"]
)
def test_an_rle_that_does_not_fill_its_size_is_refused_at_any_size(counts: str):
    with pytest.raises(InputError, match="the RLE does not fill a mask of 3 x 2"):
        masks.decode_resized(RLE(2, 3, counts), 4, 4)
    for read in (masks.decode, lambda rle: masks.to_rle(rle, 2, 3)):
        with pytest.raises(InputError, match="the RLE does not fill a mask of 3 x 2"):
            read(RLE(2, 3, counts))


def test_absurdly_long_edges_are_refused():
    with pytest.raises(InputError, match=r"a coordinate is 1e\+09 pixels; expected at most 100,000"):
        masks.to_rle([[0, 0, 1e9, 0, 0, 5]], 10, 10)
    with pytest.raises(InputError, match=r"a coordinate is 1e\+09 pixels"):
        masks.from_box((0, 0, 5, 1e9), 10, 10)


def record_of(*instances: Instance, expressions: tuple[str, ...] = ("a dog",)) -> Record:
    return Record("r", "a.jpg", 20, 10, expressions, instances, "train")


def test_protocols_differ_after_a_null():
    first, null = Instance((2, 2, 8, 8), SQUARE), Instance(None, None)
    last = Instance((10, 2, 16, 8), [[10.0, 2.0, 16.0, 2.0, 16.0, 8.0, 10.0, 8.0]])
    record = record_of(first, null, last)
    assert select(record, "official").objects == (first,)
    assert select(record, "official").merged == (first.segmentation,)
    assert select(record, "strict").objects == (first, last)
    empty = record_of(first, Instance((0, 0, 5, 5), []), last)
    assert select(empty, "official").objects == (first,)
    assert select(empty, "official").merged == (first.segmentation, last.segmentation)
    assert len(select(empty, "strict").objects) == 3


def test_strict_takes_a_lone_box_or_mask(tokenizer: Tokenizer):
    record = record_of(Instance((2, 2, 8, 8), None), Instance(None, [[10.0, 2.0, 16.0, 2.0, 16.0, 8.0, 10.0, 8.0]]))
    transform = transform_of(tokenizer, 20, protocol="strict")
    targets = batched(transform, transform.example(record, "a dog", np.zeros((10, 20, 3), np.uint8))).targets
    assert targets.valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(targets.boxes[:2], [[0.25, 0.5, 0.3, 0.6], [0.65, 0.5, 0.3, 0.6]], atol=1e-6)
    assert targets.masks.sum(axis=(1, 2)).tolist() == [72, 72, 0, 0]
    np.testing.assert_array_equal(targets.mask, targets.masks.any(axis=0))


def test_more_objects_than_targets_is_an_error(tokenizer: Tokenizer):
    record = record_of(*[Instance((2, 2, 8, 8), SQUARE)] * 5)
    choice = Alternatives(lambda position: (record, fixture_jpeg), [0])
    with pytest.raises(
        InputError,
        match=r"record r \(a.jpg\): the sentence has 5 target objects; expected at most",
    ):
        transform_of(tokenizer)(choice, np.random.default_rng(0))


def test_a_picture_of_another_size_is_an_error(tokenizer: Tokenizer):
    with pytest.raises(InputError, match="annotations state 20 x 10 pixels; the picture has 30 x 10"):
        transform_of(tokenizer).example(record_of(), "a dog", np.zeros((10, 30, 3), np.uint8))


def fixture_jpeg(shade: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((10, 20, 3), shade, np.uint8))[1].tobytes()


def test_expressions_and_alternatives_are_all_drawn(tokenizer: Tokenizer):
    records = [record_of(expressions=("red", "blue")), record_of(expressions=("a dog",))]
    choice = Alternatives(lambda position: (records[position], fixture_jpeg), range(2))
    transform, rng = transform_of(tokenizer), np.random.default_rng(0)
    drawn = {tuple(transform(choice, rng).token_ids.tolist()) for _ in range(40)}
    assert drawn == {tuple(tokenizer.encode(text, 50)[0].tolist()) for text in ("red", "blue", "a dog")}


def test_a_cached_picture_gives_the_same_example_and_is_decoded_once(tokenizer: Tokenizer):
    loads = [
        (
            replace(record_of(Instance((2, 2, 8, 8), SQUARE)), picture=f"{i}.jpg"),
            functools.partial(fixture_jpeg, 30 * i),
        )
        for i in range(3)
    ]
    plain = transform_of(tokenizer, 32)
    cached = replace(plain, cache=PictureCache(2 * 32 * 32 * 3))
    for i in (0, 1, 0, 1, 2, 0):
        choice = Alternatives(lambda position, i=i: loads[i], [0])
        ours, theirs = (batched(t, t(choice, np.random.default_rng(0))) for t in (cached, plain))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    def decode() -> np.ndarray:
        raise AssertionError("decoded again")

    assert cached.cache
    cached.cache.get("0.jpg", decode, 32, 32)
    with pytest.raises(AssertionError, match="decoded again"):
        cached.cache.get("1.jpg", decode, 32, 32)
