"""Which query answers for which target: the exact assignment of least cost, inside jit.

A shortest augmenting path solver (Jonker and Volgenant 1987, the form of Crouse 2016 that scipy uses too). Targets
are the rows and are added one at a time, so padding costs nothing: rows that are not valid are never added, and no
invented cost enters the problem. Only where T exceeds Q are there T - Q extra columns, for the targets that get no
query. Their cost is one constant above every real cost, which is enough: a target on an extra column while a query is
free could always move to that query and be cheaper.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from instancevg_jax import boxes as box_ops
from instancevg_jax.config import LossConfig
from instancevg_jax.types import Array, Matches, Outputs, Targets

HUGE = 1e30  # costs are clipped to it, so that sums of a few thousand stay finite in float32


def match(outputs: Outputs, targets: Targets, weights: LossConfig) -> Matches:
    """Optimal matching of queries and targets in every decoder layer. No gradient flows through it.

    With more targets than queries, the Q pairs of least total cost are matched. Costs that are NaN or infinite count
    as worse than every finite one. Source: paper, section 3.4; core/matcher/matcher.py of the original.
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

    Columns of padded targets hold numbers that mean nothing. Source: core/matcher/matcher.py.
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
    """The column of each row in an assignment of least total cost, -1 for rows left out.

    Rows that are not `active` take no part. Of more active rows than columns, C are assigned. Ties: any optimum.
    """
    num_rows, num_columns = cost.shape
    cost = _finite(cost, active)
    if num_rows > num_columns:
        extra = jnp.broadcast_to(_above(cost), (num_rows, num_rows - num_columns))
        cost = jnp.concatenate([cost, extra], axis=1)
    column = _augment_all(cost, active)
    return jnp.where(column < num_columns, column, -1)


def _finite(cost: Float[Array, "R C"], active: Bool[Array, "R"]) -> Float[Array, "R C"]:
    """Zero where a row is not active; NaN and infinity become a cost above every other."""
    cost = cost.astype(jnp.float32)
    usable = active[:, None] & jnp.isfinite(cost)
    clipped = jnp.where(usable, jnp.clip(cost, -HUGE, HUGE), 0.0)
    return jnp.where(active[:, None] & ~usable, _above(clipped), clipped)


def _above(cost: Float[Array, "R C"]) -> Float[Array, ""]:
    """A cost above every other, of their own scale: a larger one would cost the others their last digits."""
    largest = jnp.max(jnp.abs(cost), initial=0.0)
    return jnp.where(largest > 0, 2 * largest, 1.0)


def _augment_all(cost: Float[Array, "R C"], active: Bool[Array, "R"]) -> Int[Array, "R"]:
    """Add the active rows one by one, each along a shortest augmenting path. Needs R <= C and finite costs."""
    num_rows, num_columns = cost.shape

    def add_row(row, state):
        u, v, column_of_row, row_of_column = state
        distance, previous, tree, sink, length = _shortest_path(cost, u, v, row_of_column, row, active[row])
        # dual update over the rows and columns of the search tree
        slack = jnp.where(tree, length - distance, 0.0)
        owned = column_of_row >= 0
        u = u + jnp.where(owned, slack[column_of_row], 0.0)
        u = u.at[row].add(jnp.where(active[row], length, 0.0))
        v = v - slack
        return u, v, *_flip(column_of_row, row_of_column, previous, sink, row, active[row])

    state = (
        jnp.zeros(num_rows, jnp.float32),
        jnp.zeros(num_columns, jnp.float32),
        jnp.full(num_rows, -1, jnp.int32),
        jnp.full(num_columns, -1, jnp.int32),
    )
    return jax.lax.fori_loop(0, num_rows, add_row, state)[2]


def _shortest_path(cost, u, v, row_of_column, start, active):
    """Dijkstra from a free row to the nearest free column, over reduced costs.

    Returns distance [C], the row before each column [C], the columns in the tree [C], the free column reached and its
    distance. The tree gains one column a turn, so there are at most C turns whatever the costs.
    """
    num_columns = cost.shape[1]

    def unfinished(state):
        return state[-1]

    def step(state):
        distance, previous, tree, row, _, length, _ = state
        through_row = length + cost[row] - u[row] - v
        closer = ~tree & (through_row < distance)
        distance = jnp.where(closer, through_row, distance)
        previous = jnp.where(closer, row, previous)
        sink = jnp.argmin(jnp.where(tree, jnp.inf, distance)).astype(jnp.int32)
        length = distance[sink]
        tree = tree | (jnp.arange(num_columns) == sink)
        row = row_of_column[sink]
        return distance, previous, tree, row, sink, length, (row >= 0) & ~tree.all()

    state = (
        jnp.full(num_columns, jnp.inf, jnp.float32),
        jnp.zeros(num_columns, jnp.int32),
        jnp.zeros(num_columns, bool),
        jnp.int32(start),
        jnp.int32(0),
        jnp.float32(0),
        active,
    )
    distance, previous, tree, _, sink, length, _ = jax.lax.while_loop(unfinished, step, state)
    return distance, previous, tree, sink, length


def _flip(column_of_row, row_of_column, previous, sink, start, active):
    """Swap matched and unmatched edges along the path that ends in column `sink` and began in row `start`."""

    def unfinished(state):
        return state[-1]

    def step(state):
        column_of_row, row_of_column, column, _ = state
        row = previous[column]
        row_of_column = row_of_column.at[column].set(row)
        before = column_of_row[row]
        column_of_row = column_of_row.at[row].set(column)
        return column_of_row, row_of_column, before, row != start

    return jax.lax.while_loop(unfinished, step, (column_of_row, row_of_column, sink, active))[:2]
