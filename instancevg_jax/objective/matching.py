"""Matches queries to targets: the exact assignment of least cost, inside jit."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from instancevg_jax import boxes as box_ops
from instancevg_jax.config import LossConfig
from instancevg_jax.types import Array, Matches, Outputs, Targets

HUGE = 1e30  # costs are clipped to it, so that sums of a few thousand of them stay finite in float32


def match(outputs: Outputs, targets: Targets, weights: LossConfig) -> Matches:
    """The optimal matching of queries and targets in every decoder layer. No gradient flows through it.

    With more targets than queries, the Q pairs of least total cost are matched. A cost that is NaN or infinite counts as
    worse than every finite one. Source: paper, section 3.4; core/matcher/matcher.py of the original.
    """
    cost = jnp.swapaxes(match_cost(outputs, targets, weights), -1, -2)
    layers, batch, num_targets, num_queries = cost.shape
    valid = jnp.broadcast_to(targets.valid, (layers, batch, num_targets))
    cost = cost.reshape(layers * batch, num_targets, num_queries)
    column = jax.vmap(assign)(cost, valid.reshape(layers * batch, num_targets))
    column = column.reshape(layers, batch, num_targets)
    matched = column >= 0
    return Matches(query_index=jnp.where(matched, column, 0), matched=matched)


def match_cost(outputs: Outputs, targets: Targets, weights: LossConfig) -> Float[Array, "K B Q T"]:
    """Cost of every pair: minus the object probability, L1 and minus GIoU of the boxes, L1 from point to box centre.

    The columns of padded targets are meaningless. Source: core/matcher/matcher.py of the original.
    """
    outputs, targets = jax.lax.stop_gradient((outputs, targets))
    predicted = outputs.boxes.astype(jnp.float32)  # [K, B, Q, 4]
    wanted = targets.boxes.astype(jnp.float32)  # [B, T, 4]
    probability = jax.nn.softmax(outputs.class_logits.astype(jnp.float32), axis=-1)[..., 0]
    l1 = jnp.abs(predicted[..., :, None, :] - wanted[:, None]).sum(-1)
    giou = box_ops.pairwise_giou(
        box_ops.cxcywh_to_xyxy(predicted),
        jnp.broadcast_to(box_ops.cxcywh_to_xyxy(wanted), (predicted.shape[0], *wanted.shape)),
        box_ops.LOSS_EPS,
    )
    point = jnp.abs(outputs.points[:, :, None, :] - wanted[:, None, :, :2]).sum(-1)  # [B, Q, T]
    return (
        -weights.cost_class * probability[..., None]
        + weights.cost_boxes * l1
        - weights.cost_giou * giou
        + weights.cost_point * point
    )


def assign(cost: Float[Array, "R C"], active: Bool[Array, "R"]) -> Int[Array, "R"]:
    """The column of each row in an assignment of least total cost, -1 for rows without one.

    Rows that are not `active` take no part. Of more active rows than columns, C are assigned. Ties: any optimum.
    """
    cost = _finite(cost, active)
    # a row that takes no part costs the same everywhere, and more than every other: where it holds a column that an active
    # row could have, giving the column to that row is cheaper
    cost = jnp.where(active[:, None], cost, _above(cost))
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    column = jnp.full(cost.shape[0], -1, jnp.int32).at[rows].set(columns.astype(jnp.int32))
    return jnp.where(active, column, -1)


def _finite(cost: Float[Array, "R C"], active: Bool[Array, "R"]) -> Float[Array, "R C"]:
    """Zero where a row is not active; NaN and infinity become a cost above every other."""
    cost = cost.astype(jnp.float32)
    usable = active[:, None] & jnp.isfinite(cost)
    clipped = jnp.where(usable, jnp.clip(cost, -HUGE, HUGE), 0.0)
    return jnp.where(active[:, None] & ~usable, _above(clipped), clipped)


def _above(cost: Float[Array, "R C"]) -> Float[Array, ""]:
    """A cost above every other, on their own scale: a much larger one would take the others' last digits in float32."""
    largest = jnp.max(jnp.abs(cost), initial=0.0)
    return jnp.where(largest > 0, 2 * largest, 1.0)
