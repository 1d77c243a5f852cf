"""The training loss: detection terms per decoder layer, masks, the point map, and whether the sentence refers to anything.

Every mean and every normalization runs over the whole batch, so a batch sharded over devices gives the same numbers
as one device. The divisors (`Counts`) depend on the targets only, so the losses of a batch's parts, each divided by the
counts of the whole batch, sum up to the loss of the whole. A mean over nothing is 0, with gradient 0.
Sources: paper, section 3.4; core/criterion/criterion.py, models/losses/segloss.py and `forward_train` of
models/heads/uni_gref_deformable_head.py of the original.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int

from instancevg_jax import boxes as box_ops
from instancevg_jax.config import LossConfig
from instancevg_jax.objective.matching import match
from instancevg_jax.types import Array, Matches, Outputs, Targets

Terms = dict[str, Float[Array, ""]]
LOSS_GROUPS = (
    "detection",
    "masks",
    "no_target",
)  # the weighted parts that sum up to the loss, as `total_loss` names them


@struct.dataclass
class Counts:
    """The divisors of the terms: float32 scalars over a whole batch."""

    examples: Array
    boxes: Array  # valid targets, those in excess of Q included
    matched: Array  # queries with a target
    unmatched: Array
    existence: Array  # examples, weighted by `no_target_class_weights`


def count(targets: Targets, num_queries: int, config: LossConfig) -> Counts:
    """The counts of a batch. Any matching gives a target to min(targets, Q) queries of each example."""
    valid = targets.valid.sum(-1)
    matched = jnp.minimum(valid, num_queries).sum()
    examples = valid.shape[0]
    exists_weight, empty_weight = config.no_target_class_weights
    return Counts(
        examples=jnp.float32(examples),
        boxes=valid.sum().astype(jnp.float32),
        matched=matched.astype(jnp.float32),
        unmatched=(examples * num_queries - matched).astype(jnp.float32),
        existence=jnp.where(valid > 0, exists_weight, empty_weight).sum().astype(jnp.float32),
    )


def total_loss(
    outputs: Outputs,
    targets: Targets,
    config: LossConfig,
    matches: Matches | None = None,
    counts: Counts | None = None,
) -> tuple[Float[Array, ""], Terms]:
    """The scalar to minimize, and its parts as float32 scalars.

    `matches` defaults to `match(outputs, targets, config)`. `counts` defaults to those of `targets`; for a part of a batch, pass
    the counts of the whole batch, so that the results of the parts sum up to those of the whole.

    Unweighted terms: `class`, `boxes`, `giou` of the last layer and with `_0`, `_1`, ... of the earlier ones;
    `positive_dice`, `positive_bce` (matched queries), `negative_dice`, `negative_bce` (the others), `global_dice`,
    `global_bce`, `point_map_dice`, `point_map_bce`, `no_target_ce`. The weighted groups of `LOSS_GROUPS` sum up to the loss.
    """
    outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
    if matches is None:
        matches = match(outputs, targets, config)
    if counts is None:
        counts = count(targets, outputs.boxes.shape[2], config)
    target_index, matched = queries_to_targets(matches, outputs.boxes.shape[2])

    terms = detection_terms(outputs, targets, target_index, matched, config, counts)
    terms |= mask_terms(outputs, targets, target_index[-1], matched[-1], counts)
    terms["no_target_ce"] = no_target_cross_entropy(outputs.existence_logits, targets.valid, config, counts)
    groups = _group(terms, outputs.boxes.shape[0], config)
    return sum(groups[name] for name in LOSS_GROUPS), terms | groups


def queries_to_targets(matches: Matches, num_queries: int) -> tuple[Int[Array, "K B Q"], Bool[Array, "K B Q"]]:
    """The matching by query: the index of each query's target (0 where it has none), and whether it has one."""
    pairs = (matches.query_index[..., None] == jnp.arange(num_queries)) & matches.matched[..., None]  # [K, B, T, Q]
    return jnp.argmax(pairs, axis=-2), pairs.any(axis=-2)


def detection_terms(
    outputs: Outputs,
    targets: Targets,
    target_index: Int[Array, "K B Q"],
    matched: Bool[Array, "K B Q"],
    config: LossConfig,
    counts: Counts,
) -> Terms:
    """Class, box and GIoU terms of every layer, unweighted, named as in `total_loss`.

    Class: two-way cross entropy, averaged with weight `no_object_weight` for queries without a target. Boxes: L1 and
    1 - GIoU, summed over matched pairs and divided by the number of targets in the batch (targets beyond the Q matched
    ones included).
    """
    nll = -jax.nn.log_softmax(outputs.class_logits)
    nll = jnp.where(matched, nll[..., 0], nll[..., 1])
    weight = jnp.where(matched, 1.0, config.no_object_weight)
    class_loss = _divide((weight * nll).sum((1, 2)), counts.matched + config.no_object_weight * counts.unmatched)

    chosen = jax.vmap(_rows, in_axes=(0, 1), out_axes=1)(targets.boxes, target_index)
    wanted = jnp.where(matched[..., None], chosen, 0)  # [K, B, Q, 4]
    l1 = jnp.abs(outputs.boxes - wanted).sum(-1)
    giou = box_ops.paired_giou(box_ops.cxcywh_to_xyxy(outputs.boxes), box_ops.cxcywh_to_xyxy(wanted), box_ops.LOSS_EPS)
    box_loss = _divide(jnp.where(matched, l1, 0).sum((1, 2)), counts.boxes)
    giou_loss = _divide(jnp.where(matched, 1 - giou, 0).sum((1, 2)), counts.boxes)

    terms: Terms = {}
    last = outputs.boxes.shape[0] - 1
    for layer in range(last + 1):
        suffix = "" if layer == last else f"_{layer}"
        terms |= {
            f"class{suffix}": class_loss[layer],
            f"boxes{suffix}": box_loss[layer],
            f"giou{suffix}": giou_loss[layer],
        }
    return terms


def mask_terms(
    outputs: Outputs,
    targets: Targets,
    target_index: Int[Array, "B Q"],
    matched: Bool[Array, "B Q"],
    counts: Counts,
) -> Terms:
    """Dice and binary cross entropy of instance masks, merged mask and point map, unweighted.

    A matched query is compared with its target's mask, any other with an empty mask. The point map is an attention
    map (values of 0 to about 0.2) that is treated as logits, as the original does; its target is the merged mask at
    the map's size.
    """
    wanted = jax.vmap(_rows)(targets.masks, target_index) & matched[..., None, None]
    dice, bce = dice_loss(outputs.mask_logits, wanted), bce_loss(outputs.mask_logits, wanted)  # [B, Q]
    coarse = resize_nearest(targets.mask, outputs.point_map.shape[1:])
    return {
        "positive_dice": _divide((matched * dice).sum(), counts.matched),
        "positive_bce": _divide((matched * bce).sum(), counts.matched),
        "negative_dice": _divide((~matched * dice).sum(), counts.unmatched),
        "negative_bce": _divide((~matched * bce).sum(), counts.unmatched),
        "global_dice": dice_loss(outputs.global_mask_logits, targets.mask).sum() / counts.examples,
        "global_bce": bce_loss(outputs.global_mask_logits, targets.mask).sum() / counts.examples,
        "point_map_dice": dice_loss(outputs.point_map, coarse).sum() / counts.examples,
        "point_map_bce": bce_loss(outputs.point_map, coarse).sum() / counts.examples,
    }


def no_target_cross_entropy(
    existence_logits: Float[Array, "B 2"], valid: Bool[Array, "B T"], config: LossConfig, counts: Counts
) -> Float[Array, ""]:
    """Two-way cross entropy, weighted by class; an example without a valid target has class 1."""
    empty = ~valid.any(axis=-1)
    nll = -jax.nn.log_softmax(existence_logits)
    exists_weight, empty_weight = config.no_target_class_weights
    weighted = jnp.where(empty, empty_weight * nll[:, 1], exists_weight * nll[:, 0])
    return _divide(weighted.sum(), counts.existence)


def dice_loss(logits: Float[Array, "*n H W"], target: Bool[Array, "*n H W"]) -> Float[Array, "*n"]:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) of each mask."""
    probability = jax.nn.sigmoid(logits)
    overlap = jnp.where(target, probability, 0).sum((-2, -1))
    size = probability.sum((-2, -1)) + target.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (size + 1)


def bce_loss(logits: Float[Array, "*n H W"], target: Bool[Array, "*n H W"]) -> Float[Array, "*n"]:
    """Binary cross entropy of each mask, a mean over its pixels."""
    return jax.nn.softplus(jnp.where(target, -logits, logits)).mean((-2, -1))


def resize_nearest(mask: Bool[Array, "B H W"], size: tuple[int, int]) -> Bool[Array, "B h w"]:
    """Row i is row floor(i * H / h) of the input, and likewise for columns: torch's `interpolate(mode="nearest")`."""
    rows, columns = (
        np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int32)
        for old, new in zip(mask.shape[1:], size, strict=True)
    )
    return mask[:, rows[:, None], columns[None, :]]


def _rows(array: Array, index: Int[Array, "*n"]) -> Array:
    """Rows of one example. Under vmap XLA knows that no device needs another device's examples; with a batch index it does not."""
    return array[index]


def _detection_weights(num_layers: int, config: LossConfig) -> dict[str, float]:
    last = {"class": config.class_weight, "boxes": config.boxes_weight, "giou": config.giou_weight}
    earlier = last if config.auxiliary_weights == "same" else dict.fromkeys(last, 1.0)
    return last | {f"{name}_{layer}": weight for layer in range(num_layers - 1) for name, weight in earlier.items()}


def _group(terms: Terms, num_layers: int, config: LossConfig) -> Terms:
    """The weighted sums named in `LOSS_GROUPS`, from unweighted terms."""

    def masks(name: str) -> Float[Array, ""]:
        return config.dice * terms[f"{name}_dice"] + config.bce * terms[f"{name}_bce"]

    weights = _detection_weights(num_layers, config)
    return {
        "detection": config.detection * sum(weight * terms[name] for name, weight in weights.items()),
        "masks": masks("positive")
        + config.negative_masks * masks("negative")
        + masks("global")
        + config.point_map * masks("point_map"),
        "no_target": config.no_target * terms["no_target_ce"],
    }


def _divide(total: Float[Array, "*n"], by: Float[Array, ""]) -> Float[Array, "*n"]:
    """A weighted mean from its sum; 0, with gradient 0, where the weights sum up to 0."""
    return total / jnp.where(by > 0, by, 1)
