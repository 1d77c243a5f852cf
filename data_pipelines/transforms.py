"""A record and its picture -> an example, and examples -> a batch of the shapes that the model and the losses take, in numpy.

Source: datasets/pipelines/loading.py and transforms.py (`Resize`, `Normalize`) of the original.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8

from data_pipelines import masks
from data_pipelines.cache import PictureCache
from data_pipelines.records import RLE, Box, Instance, Record, Segmentation, select
from instancevg_jax.boxes import xyxy_to_cxcywh
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import decode_picture, normalize, resize_picture
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch, Targets


class Alternatives(NamedTuple):
    """Records of which one is drawn at random and read."""

    load: Callable[
        [int], tuple[Record, Callable[[], bytes]]
    ]  # position -> record, and a function that reads its picture
    positions: Sequence[int]  # of the records


@dataclass(frozen=True)
class Example:
    """One training or evaluation example, before normalization and padding: see `stack`."""

    pixels: UInt8[np.ndarray, "H W 3"]  # RGB, at the network's size
    token_ids: Int32[np.ndarray, " L"]
    token_mask: Bool[np.ndarray, " L"]
    boxes: Float32[np.ndarray, "N 4"]  # cxcywh in [0, 1]
    masks: Sequence[Bool[np.ndarray, "H W"]]  # N of them
    mask: Bool[np.ndarray, "H W"]  # merged
    example_weight: float = 1.0
    item: int = -1  # set by the loader


def stack(examples: Sequence[Example], max_targets: int) -> Batch:
    """The batch of these examples: pictures normalized, targets padded to T = `max_targets` rows."""
    size = examples[0].pixels.shape[:2]
    images = np.empty((len(examples), *size, 3), np.float32)
    boxes = np.zeros((len(examples), max_targets, 4), np.float32)
    parts = np.zeros((len(examples), max_targets, *size), bool)
    for row, example in enumerate(examples):
        normalize(example.pixels, images[row])
        boxes[row, : len(example.boxes)] = example.boxes
        for i, mask in enumerate(example.masks):
            parts[row, i] = mask
    counts = np.array([len(example.boxes) for example in examples])
    return Batch(
        images=images,
        token_ids=np.stack([example.token_ids for example in examples]),
        token_mask=np.stack([example.token_mask for example in examples]),
        targets=Targets(
            boxes=boxes,
            valid=np.arange(max_targets) < counts[:, None],
            masks=parts,
            mask=np.stack([example.mask for example in examples]),
        ),
        example_weight=np.array([example.example_weight for example in examples], np.float32),
        item=np.array([example.item for example in examples], np.int32),
    )


@dataclass(frozen=True)
class Transform:
    """Makes the example of a `Alternatives`, drawing one of its records and one of the record's expressions.

    Raises InputError, naming the record, for a picture that is missing, damaged or of another size than stated, an
    expression without words, a mask that cannot be drawn, and more than `max_targets` objects.
    """

    tokenizer: Tokenizer
    height: int
    width: int
    max_tokens: int
    max_targets: int
    protocol: str = "official"
    cache: PictureCache | None = None

    def __call__(self, choice: Alternatives, rng: np.random.Generator) -> Example:
        """One example."""
        record, read = choice.load(choice.positions[int(rng.integers(len(choice.positions)))])
        expression = record.expressions[int(rng.integers(len(record.expressions)))]

        def decode() -> UInt8[np.ndarray, "h w 3"]:
            return decode_picture(read(), record.picture)

        try:
            if self.cache is None:
                return self.example(record, expression, decode())
            pixels, size = self.cache.get(record.picture, decode, self.height, self.width)
            return self._example(record, expression, pixels, size)
        except InputError as error:
            raise InputError(f"record {record.id} ({record.picture}): {error}") from error

    def example(self, record: Record, expression: str, rgb: UInt8[np.ndarray, "h w 3"]) -> Example:
        """The example of one expression of a record whose picture is `rgb`."""
        return self._example(record, expression, resize_picture(rgb, self.height, self.width), rgb.shape[:2])

    def stack(self, examples: Sequence[Example]) -> Batch:
        """The batch of these examples: the function `stack` with this `max_targets`."""
        return stack(examples, self.max_targets)

    def _example(self, record: Record, expression: str, pixels: np.ndarray, size: tuple[int, int]) -> Example:
        """`pixels`: at the network's size; `size`: (height, width) of the record's picture."""
        height, width = size
        if (record.height, record.width) not in ((height, width), (0, 0)):
            stated = f"{record.width} x {record.height}"
            raise InputError(f"the annotations state {stated} pixels; the picture has {width} x {height}")
        token_ids, token_mask = self.tokenizer.encode(clean_expression(expression), self.max_tokens)
        return Example(pixels, token_ids, token_mask, *self.targets(record, height, width))

    def targets(
        self, record: Record, height: int, width: int
    ) -> tuple[Float32[np.ndarray, "N 4"], list[Bool[np.ndarray, "H W"]], Bool[np.ndarray, "H W"]]:
        """Boxes, masks and merged mask at the network's size, of a record whose picture is height x width pixels."""
        objects, merged = select(record, self.protocol)
        check_count(len(objects), self.max_targets)
        parts = [self._mask(mask_of(instance, height, width)) for instance in objects]
        xyxy = np.array([box_of(instance, height, width) for instance in objects], np.float64).reshape(-1, 4)
        xyxy = scale_boxes(clip_boxes(xyxy, height, width), (height, width), (self.height, self.width))
        boxes = unit_boxes(xyxy, self.height, self.width)
        if [i.segmentation for i in objects] == list(merged):
            return boxes, parts, self._union(parts)
        # not the objects' own masks: the official protocol stopped early, or objects have only a box
        rles = merged_rles(objects, merged, height, width)
        return boxes, parts, self._union([self._mask(rle) for rle in rles])

    def _mask(self, rle: RLE) -> Bool[np.ndarray, "H W"]:
        return masks.decode_resized(rle, self.height, self.width)

    def _union(self, parts: Sequence[Bool[np.ndarray, "H W"]]) -> Bool[np.ndarray, "H W"]:
        union = np.zeros((self.height, self.width), bool)
        for part in parts:
            union |= part
        return union


def check_count(objects: int, max_targets: int) -> None:
    """Raise InputError for a record with more objects than a batch has rows for."""
    if objects > max_targets:
        raise InputError(
            f"the sentence has {objects} target objects; expected at most data.max_targets = {max_targets}"
        )


def truth_of(record: Record, protocol: str) -> tuple[Float64[np.ndarray, "N 4"], Bool[np.ndarray, "h w"]]:
    """The targets in the picture's own pixels: the objects' clipped boxes, and the merged mask.

    The record must state its picture's size, as prepared records do.
    """
    height, width = record.height, record.width
    objects, merged = select(record, protocol)
    boxes = np.array([box_of(instance, height, width) for instance in objects], np.float64).reshape(-1, 4)
    whole = np.zeros((height, width), bool)
    for rle in merged_rles(objects, merged, height, width):
        whole |= masks.decode(rle).view(bool)
    return clip_boxes(boxes, height, width), whole


def merged_rles(objects: Sequence[Instance], merged: Sequence[Segmentation], height: int, width: int) -> list[RLE]:
    """The masks whose union is the merged mask: `merged`, and the filled boxes of objects that have only a box."""
    rles = [masks.sized(s, height, width) for s in merged]
    return rles + [mask_of(i, height, width) for i in objects if not i.segmentation]


def mask_of(instance: Instance, height: int, width: int) -> RLE:
    """An object's mask at its picture's size; if it has only a box (strict protocol), the filled box."""
    if instance.segmentation:
        return masks.sized(instance.segmentation, height, width)
    if instance.box is None:
        raise InputError("an object has neither box nor mask")
    return masks.from_box(instance.box, height, width)


def box_of(instance: Instance, height: int, width: int) -> Box:
    """An object's box; if it has only a mask (strict protocol), the box around the mask."""
    return instance.box or masks.bounds(mask_of(instance, height, width))


def clip_boxes(xyxy: Float64[np.ndarray, "N 4"], height: int, width: int) -> Float64[np.ndarray, "N 4"]:
    """Clip to [0, width - 1] and [0, height - 1]. Source: `_load_bboxes` in loading.py of the original."""
    limits = np.array([width - 1, height - 1, width - 1, height - 1], np.float64)
    return np.clip(xyxy, 0, limits)


def scale_boxes(
    xyxy: Float64[np.ndarray, "N 4"], source: tuple[int, int], target: tuple[int, int]
) -> Float64[np.ndarray, "N 4"]:
    """Pixels of a picture of size `source` (height, width) -> of size `target`. The factors are float32, as in `Resize`."""
    vertical, horizontal = target[0] / source[0], target[1] / source[1]
    return xyxy * np.array([horizontal, vertical, horizontal, vertical], np.float32)


def unit_boxes(xyxy: Float[np.ndarray, "N 4"], height: int, width: int) -> Float32[np.ndarray, "N 4"]:
    """xyxy in pixels of a picture of height x width -> cxcywh in [0, 1]."""
    return xyxy_to_cxcywh(xyxy / np.array([width, height, width, height], np.float64)).astype(np.float32)
