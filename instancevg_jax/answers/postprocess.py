"""From the network's outputs to an answer: scores, which queries count, the merged mask; then to the picture's own size.

`postprocess` is pure and meant to be called inside `jax.jit`; `to_original_size` runs on the host, one record at a
time. Source: models/det_seg/mix_gref_unimodel.py (`get_predictions_parts`) and models/postprocess/nms.py of the
original.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from instancevg_jax import boxes as box_ops
from instancevg_jax.config import EvalConfig
from instancevg_jax.errors import InputError
from instancevg_jax.types import Array, Outputs, Predictions


@dataclass(frozen=True)
class Grounding:
    """The answer for one picture and sentence, numpy, in the picture's own pixels. N objects, best first."""

    boxes_xyxy: np.ndarray  # [N, 4] float32
    scores: np.ndarray  # [N] float32 in [0, 1]
    masks: np.ndarray  # [N, H, W] bool
    points_xy: np.ndarray  # [N, 2] float32, where each object's query started from
    mask: np.ndarray  # [H, W] bool, everything that is meant
    exists: bool  # the sentence means something: N > 0
    no_target_probability: float


def postprocess(outputs: Outputs, config: EvalConfig, protocol: str = "strict") -> Predictions:
    """Answers at the network's picture size, one row a query.

    Score: softmax probability of "object", times the probability that anything is meant if `score_weighted`. A query
    counts (`keep`) where score > `score_threshold`. Merged mask: pixels where the global mask or a counted query's
    mask has a sigmoid of at least `mask_threshold` ("merge"), or only the former ("global") or the latter
    ("instance").

    A query whose box is empty after clipping to the picture, or that NMS suppresses, gives no answer: its box and
    score are 0. `protocol="official"` repeats a slip of the original there: it drops empty boxes but not their masks,
    so that the masks of all later queries are those of an earlier one, in the merged mask.

    Raises InputError for an unknown `no_target_rule`, `mask_merge` or `protocol`.
    """
    height, width = outputs.mask_logits.shape[-2:]
    scored = _score(outputs, config)
    return Predictions(
        boxes_xyxy=jnp.where(scored.answers[..., None], scored.boxes_xyxy, 0),
        scores=jnp.where(scored.answers, scored.scores, 0),
        masks=_masks(outputs, config),
        keep=scored.answers & (scored.scores > config.score_threshold),
        mask=_mask_levels(outputs, scored, config, protocol) > config.score_threshold,
        no_target_probability=1 - existence_probability(outputs.existence_logits, config.no_target_rule),
        points_xy=outputs.points * jnp.array([width, height], jnp.float32),
    )


def thresholds_passed(
    outputs: Outputs, config: EvalConfig, thresholds: tuple[float, ...], protocol: str
) -> UInt8[Array, "B H W"]:
    """The merged masks of `postprocess` for every score threshold at once.

    Args:
        outputs: of the model.
        config: as `postprocess` takes it; its `score_threshold` does not matter.
        thresholds: ascending, at most 255.
        protocol: as `postprocess` takes it.

    Returns:
        For each pixel the number of thresholds whose merged mask it belongs to, which are the lowest ones: the merged mask of
        `thresholds[i]` is where it is greater than i.
    """
    levels = _mask_levels(outputs, _score(outputs, config), config, protocol)
    steps = jnp.array(thresholds, jnp.float32)
    return (levels[..., None] > steps).sum(-1, dtype=jnp.uint8)


class _Scored(NamedTuple):
    """The queries before a threshold."""

    boxes_xyxy: Array  # [B, Q, 4] float32, pixels of the network's picture, clipped to it
    scores: Array  # [B, Q] float32
    present: Array  # [B, Q] bool, the box is not empty
    answers: Array  # [B, Q] bool, present and not suppressed by NMS


def _score(outputs: Outputs, config: EvalConfig) -> _Scored:
    height, width = outputs.mask_logits.shape[-2:]
    size = jnp.array([width, height, width, height], jnp.float32)
    boxes = jnp.clip(box_ops.cxcywh_to_xyxy(outputs.boxes[-1].astype(jnp.float32)) * size, 0, size)
    scores = jax.nn.softmax(outputs.class_logits[-1].astype(jnp.float32))[..., 0]
    if config.score_weighted:
        scores = scores * existence_probability(outputs.existence_logits, config.no_target_rule)[:, None]
    present = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    answers = present
    if config.nms_threshold > 0:
        answers = jax.vmap(nms, (0, 0, 0, None))(boxes, scores, present, config.nms_threshold)
    return _Scored(boxes, scores, present, answers)


def existence_probability(existence_logits: Float[Array, "B 2"], rule: str) -> Float[Array, "B"]:
    """Probability that the sentence means something.

    "sigmoid" looks at logit 0 alone, as the original does at inference although it trains both logits with a softmax;
    "softmax" is what the training optimizes.
    """
    _check_choice("eval.no_target_rule", rule, ("sigmoid", "softmax"))
    logits = existence_logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits[:, 0]) if rule == "sigmoid" else jax.nn.softmax(logits)[:, 0]


def nms(
    boxes_xyxy: Float[Array, "Q 4"], scores: Float[Array, "Q"], present: Bool[Array, "Q"], threshold: float
) -> Bool[Array, "Q"]:
    """Greedy non-maximum suppression: a box goes if a better, kept one overlaps it with IoU > `threshold`.

    Boxes that are not `present` neither stay nor suppress. Source: models/postprocess/nms.py.
    """
    order = jnp.argsort(-jnp.where(present, scores, -jnp.inf))
    overlaps = box_ops.pairwise_iou(boxes_xyxy[order], boxes_xyxy[order]) > threshold
    earlier = jnp.arange(len(order))

    def decide(i: Array, kept: Array) -> Array:
        return kept.at[i].set(kept[i] & ~(overlaps[i] & kept & (earlier < i)).any())

    kept = jax.lax.fori_loop(0, len(order), decide, present[order])
    return jnp.zeros_like(present).at[order].set(kept)


def to_original_size(
    predictions: Predictions, index: int, height: int, width: int, always_exists: bool = False
) -> Grounding:
    """Record `index` of a batch, in a picture of height x width pixels. Masks are resized with nearest neighbour, as cv2 does.

    Where no query counts, `exists` is False and the mask is empty, whatever the global mask says. With
    `always_exists` (REC and RES, where a sentence means exactly one object) the query of the best score answers then.
    """
    row = jax.tree.map(lambda leaf: np.asarray(leaf[index]), predictions)
    chosen = np.flatnonzero(row.keep)
    if always_exists and len(chosen) == 0:
        chosen = np.array([row.scores.argmax()])
    chosen = chosen[np.argsort(-row.scores[chosen], kind="stable")]
    net_height, net_width = row.mask.shape
    scale = np.array([width / net_width, height / net_height], np.float32)
    exists = len(chosen) > 0
    return Grounding(
        boxes_xyxy=row.boxes_xyxy[chosen] * np.tile(scale, 2),
        scores=row.scores[chosen],
        masks=np.stack([resize_mask(row.masks[q], height, width) for q in chosen])
        if exists
        else np.zeros((0, height, width), bool),
        points_xy=row.points_xy[chosen] * scale,
        mask=resize_mask(row.mask & exists, height, width),
        exists=exists,
        no_target_probability=float(row.no_target_probability),
    )


def resize_mask(mask: Bool[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Nearest neighbour, pixel for pixel what cv2's INTER_NEAREST gives."""
    return resize_levels(mask.astype(np.uint8), height, width).astype(bool)


def resize_levels(levels: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """The same for the answer of `thresholds_passed`: its resized masks are the masks of it resized."""
    return cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)


def _masks(outputs: Outputs, config: EvalConfig) -> Bool[Array, "B Q H W"]:
    return jax.nn.sigmoid(outputs.mask_logits) >= config.mask_threshold


def _mask_levels(outputs: Outputs, scored: _Scored, config: EvalConfig, protocol: str) -> Float[Array, "B H W"]:
    """The merged mask of a score threshold t is where this is greater than t.

    It is the best score of the queries whose mask has the pixel, and infinite where the global mask has it.
    """
    _check_choice("eval.mask_merge", config.mask_merge, ("merge", "global", "instance"))
    _check_choice("protocol", protocol, ("official", "strict"))
    global_mask = jax.nn.sigmoid(outputs.global_mask_logits) >= config.mask_threshold
    everywhere = jnp.where(global_mask, jnp.inf, -jnp.inf)
    if config.mask_merge == "global":
        return everywhere
    scores = jnp.where(scored.answers, scored.scores, -jnp.inf)
    if protocol == "official":
        scores = _shift_past_dropped(scores, scored.present)
    best = jnp.where(_masks(outputs, config), scores[..., None, None], -jnp.inf).max(1)
    return jnp.maximum(best, everywhere) if config.mask_merge == "merge" else best


def _shift_past_dropped(scores: Float[Array, "B Q"], present: Bool[Array, "B Q"]) -> Float[Array, "B Q"]:
    """`scores` without the dropped rows, closed up to the front: whose mask the original takes for each box."""
    return jnp.take_along_axis(scores, jnp.argsort(~present, axis=1, stable=True), axis=1)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
