"""From the network's outputs to an answer: scores, the queries that count, and the merged mask; then to the picture's own size.

`postprocess` is pure and meant for use inside `jax.jit`; `to_original_size` runs on the host, one record at a time. Source:
models/det_seg/mix_gref_unimodel.py (`get_predictions_parts`) and models/postprocess/nms.py of the original.
"""

from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, UInt8

from instancevg_jax import boxes as box_ops
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.config import EvalConfig
from instancevg_jax.types import Array, Outputs, Predictions


@struct.dataclass
class Decision:
    """Which queries count and what the merged mask consists of. Every field may be traced: a new value compiles nothing."""

    score_threshold: float  # a query counts above it
    nms_threshold: float  # a query is suppressed if a better one overlaps its box by a greater IoU; 0: no suppression
    top_k: int  # only the best ones count; 0: no limit
    global_mask: bool  # the merged mask includes the global mask
    instance_masks: bool  # the merged mask includes the masks of the queries that count

    @classmethod
    def of(cls, config: EvalConfig, top_k: int = 0) -> "Decision":
        """The decision that a config states."""
        return cls(
            score_threshold=config.score_threshold,
            nms_threshold=config.nms_threshold,
            top_k=top_k,
            global_mask=config.mask_merge in ("merge", "global"),
            instance_masks=config.mask_merge in ("merge", "instance"),
        )


def postprocess(
    outputs: Outputs, config: EvalConfig, protocol: str = "strict", decision: Decision | None = None
) -> Predictions:
    """Answers at the network's picture size, one row per query.

    Score: softmax probability of "object", times the probability that anything is meant if `score_weighted`. A query
    counts (`keep`) where score > `score_threshold`. Merged mask: pixels where the global mask or a counted query's
    mask has a sigmoid of at least `mask_threshold` ("merge"), or only the former ("global") or the latter
    ("instance").

    A query gives no answer if its box is empty after clipping to the picture, if NMS suppresses it, or if it is not among
    the `top_k` best: its box and score are 0. `protocol="official"` repeats a slip of the original there: it drops empty
    boxes but not their masks, so that in the merged mask all later queries have the mask of an earlier one.

    Args:
        outputs: of the model.
        config: how scores and masks are computed; `config.check` has checked it.
        protocol: "strict" or "official".
        decision: what counts, possibly traced. None: as `config` states.
    """
    decision = decision or Decision.of(config)
    height, width = outputs.mask_logits.shape[-2:]
    scored = score_queries(outputs, config)
    answers = _answers(scored, decision)
    levels = _mask_levels(outputs, scored, answers, config, protocol, decision)
    return Predictions(
        boxes_xyxy=jnp.where(answers[..., None], scored.boxes_xyxy, 0),
        scores=jnp.where(answers, scored.scores, 0),
        masks=_masks(outputs, config),
        keep=answers & (scored.scores > decision.score_threshold),
        mask=levels > decision.score_threshold,
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
    scored, decision = score_queries(outputs, config), Decision.of(config)
    levels = _mask_levels(outputs, scored, _answers(scored, decision), config, protocol, decision)
    steps = jnp.array(thresholds, jnp.float32)
    return (levels[..., None] > steps).sum(-1, dtype=jnp.uint8)


class ScoredQueries(NamedTuple):
    """All queries, before it is decided which of them count."""

    boxes_xyxy: Array  # [B, Q, 4] float32, pixels of the network's picture, clipped to it
    scores: Array  # [B, Q] float32
    present: Array  # [B, Q] bool, the box is not empty


def score_queries(outputs: Outputs, config: EvalConfig) -> ScoredQueries:
    """Boxes and scores as `postprocess` states them."""
    height, width = outputs.mask_logits.shape[-2:]
    size = jnp.array([width, height, width, height], jnp.float32)
    boxes = jnp.clip(box_ops.cxcywh_to_xyxy(outputs.boxes[-1].astype(jnp.float32)) * size, 0, size)
    scores = jax.nn.softmax(outputs.class_logits[-1].astype(jnp.float32))[..., 0]
    if config.score_weighted:
        scores = scores * existence_probability(outputs.existence_logits, config.no_target_rule)[:, None]
    return ScoredQueries(boxes, scores, (boxes[..., 2:] > boxes[..., :2]).all(-1))


def _answers(scored: ScoredQueries, decision: Decision) -> Bool[Array, "B Q"]:
    """The queries that give an answer: present, not suppressed, among the best."""
    kept = jax.vmap(nms, (0, 0, 0, None))(scored.boxes_xyxy, scored.scores, scored.present, decision.nms_threshold)
    answers = kept | (scored.present & (decision.nms_threshold == 0))
    order = jnp.argsort(-jnp.where(answers, scored.scores, -jnp.inf), axis=1)
    rank = jnp.argsort(order, axis=1)
    return answers & ((rank < decision.top_k) | (decision.top_k == 0))


def existence_probability(existence_logits: Float[Array, "B 2"], rule: str) -> Float[Array, "B"]:
    """Probability that the sentence refers to something.

    "sigmoid" reads logit 0 alone, as the original does at inference although it trains both logits with a softmax;
    "softmax" is what training optimizes.
    """
    logits = existence_logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits[:, 0]) if rule == "sigmoid" else jax.nn.softmax(logits)[:, 0]


def nms(
    boxes_xyxy: Float[Array, "Q 4"], scores: Float[Array, "Q"], present: Bool[Array, "Q"], threshold: float
) -> Bool[Array, "Q"]:
    """Greedy non-maximum suppression: which boxes stay. One goes if a better one that stays overlaps it with IoU > `threshold`.

    Boxes that are not `present` neither stay nor suppress. Source: models/postprocess/nms.py.
    """
    order = jnp.argsort(-jnp.where(present, scores, -jnp.inf))
    overlaps = box_ops.pairwise_iou(boxes_xyxy[order], boxes_xyxy[order]) > threshold
    kept, position = present[order], np.arange(len(order))
    for i in position:
        kept &= ~(kept[i] & overlaps[i] & (position > i))
    return kept[jnp.argsort(order)]


def to_original_size(
    predictions: Predictions, index: int, height: int, width: int, always_exists: bool = False
) -> Grounding:
    """Record `index` of a batch, in a picture of height x width pixels. Masks are resized by nearest neighbour, as in cv2.

    If no query counts, `exists` is False and the merged mask is empty, whatever the global mask is. With `always_exists`
    (REC and RES, where a sentence refers to exactly one object) the query of the best score is the answer instead.
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
        best_score=float(row.scores.max()),
    )


def resize_mask(mask: Bool[np.ndarray, "h w"], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Resize by nearest neighbour: pixel for pixel cv2's INTER_NEAREST."""
    return resize_levels(mask.astype(np.uint8), height, width).astype(bool)


def resize_levels(levels: UInt8[np.ndarray, "h w"], height: int, width: int) -> UInt8[np.ndarray, "H W"]:
    """The same for the result of `thresholds_passed`. Resizing commutes with thresholding."""
    return cv2.resize(levels, (width, height), interpolation=cv2.INTER_NEAREST)


def _masks(outputs: Outputs, config: EvalConfig) -> Bool[Array, "B Q H W"]:
    return jax.nn.sigmoid(outputs.mask_logits) >= config.mask_threshold


def _mask_levels(
    outputs: Outputs,
    scored: ScoredQueries,
    answers: Bool[Array, "B Q"],
    config: EvalConfig,
    protocol: str,
    decision: Decision,
) -> Float[Array, "B H W"]:
    """The merged mask for a score threshold t is where this is greater than t.

    It is infinite where the global mask has the pixel, and elsewhere the best score of the queries whose mask has it.
    """
    global_mask = jax.nn.sigmoid(outputs.global_mask_logits) >= config.mask_threshold
    everywhere = jnp.where(global_mask & decision.global_mask, jnp.inf, -jnp.inf)
    scores = jnp.where(answers & decision.instance_masks, scored.scores, -jnp.inf)
    if protocol == "official":
        scores = _shift_past_dropped(scores, scored.present)
    best = jnp.where(_masks(outputs, config), scores[..., None, None], -jnp.inf).max(1)
    return jnp.maximum(best, everywhere)


def _shift_past_dropped(scores: Float[Array, "B Q"], present: Bool[Array, "B Q"]) -> Float[Array, "B Q"]:
    """`scores` with the rows of empty boxes removed and later rows moved up: the original pairs these with masks by position."""
    return jnp.take_along_axis(scores, jnp.argsort(~present, axis=1, stable=True), axis=1)
