"""The matching is optimal (against scipy), whatever the shapes, padding, ties and bad costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from instancevg_jax.config import LossConfig
from instancevg_jax.objective import matching
from instancevg_jax.types import Outputs, Targets

ROWS, COLUMNS, PROBLEMS = 12, 8, 64  # one jitted shape for every random problem: more targets than queries, and padding
assign = jax.jit(jax.vmap(matching.assign))


def check(cost, active, column):
    """`column` is a valid assignment of the active rows, and as cheap as scipy's."""
    rows = np.flatnonzero(column >= 0)
    assert set(rows) <= set(np.flatnonzero(active))
    assert len(set(column[rows])) == len(rows) == min(active.sum(), cost.shape[1])
    best = cost[active][linear_sum_assignment(cost[active])].astype(np.float64)
    np.testing.assert_allclose(
        cost[rows, column[rows]].astype(np.float64).sum(),
        best.sum(),
        rtol=1e-5,
        atol=1e-5 * np.abs(cost[active]).max(initial=0),
    )


KINDS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "ties": lambda rng, size: rng.integers(0, 3, size),
    "equal": lambda rng, size: np.full(size, 2.5),
    "scales": lambda rng, size: rng.normal(size=size) * 10.0 ** rng.integers(-6, 7, (size[0], 1, 1)),
    "negative": lambda rng, size: -100 - rng.random(size),
    "rank one": lambda rng, size: rng.random((*size[:2], 1)) * rng.random((size[0], 1, size[2])),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_scipy(kind, seed):
    """10 examples of 64 problems for each of 6 kinds: 3,840 problems with 0 to 12 targets for 8 queries."""
    rng = np.random.default_rng(seed)
    cost = KINDS[kind](rng, (PROBLEMS, ROWS, COLUMNS)).astype(np.float32)
    active = rng.random((PROBLEMS, ROWS)) < rng.choice([0, 0.2, 0.6, 1], (PROBLEMS, 1))
    columns = np.asarray(assign(cost, active))
    for problem in zip(cost, active, columns, strict=True):
        check(*problem)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 10), (10, 1), (10, 10), (5, 60)])
def test_other_shapes(rows, columns):
    rng = np.random.default_rng(rows * 100 + columns)
    cost, active = rng.normal(size=(20, rows, columns)).astype(np.float32), np.ones((20, rows), bool)
    for problem in zip(cost, active, np.asarray(assign(cost, active)), strict=True):
        check(*problem)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_bad_costs_end_and_are_avoided(bad):
    rng = np.random.default_rng(0)
    cost = rng.normal(size=(PROBLEMS, ROWS, COLUMNS)).astype(np.float32)
    cost[:, ::2, 1] = bad
    cost[0] = bad
    active = np.ones((PROBLEMS, ROWS), bool)
    active[1] = False
    column = np.asarray(assign(cost, active))
    assert ((column >= 0).sum(1) == np.where(active.any(1), COLUMNS, 0)).all()
    if not np.isfinite(bad):
        assert np.isfinite(np.take_along_axis(cost, column[..., None].clip(0), 2)[2:, :, 0][column[2:] >= 0]).all()


def problem(rng, layers=2, batch=3, queries=4, targets=3):
    outputs = Outputs(
        class_logits=rng.normal(size=(layers, batch, queries, 2)).astype(np.float32),
        boxes=jnp.asarray(rng.random((layers, batch, queries, 4)), jnp.float32),
        mask_logits=jnp.zeros((batch, queries, 4, 4)),
        global_mask_logits=jnp.zeros((batch, 4, 4)),
        existence_logits=jnp.zeros((batch, 2)),
        points=jnp.asarray(rng.random((batch, queries, 2)), jnp.float32),
        point_map=jnp.zeros((batch, 2, 2)),
    )
    valid = np.arange(targets) < np.arange(batch)[:, None]
    wanted = Targets(
        boxes=jnp.asarray(rng.random((batch, targets, 4)) * valid[..., None], jnp.float32),
        valid=jnp.asarray(valid),
        masks=jnp.zeros((batch, targets, 4, 4), bool),
        mask=jnp.zeros((batch, 4, 4), bool),
    )
    return outputs, wanted


def test_cost_is_the_weighted_sum():
    outputs, targets = problem(np.random.default_rng(1))
    cost = np.asarray(jax.jit(lambda o, t: matching.match_cost(o, t, LossConfig()))(outputs, targets))
    k, b, q, t = 1, 2, 3, 0
    box, want = np.asarray(outputs.boxes[k, b, q]), np.asarray(targets.boxes[b, t])
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    want_low, want_high = want[:2] - want[2:] / 2, want[:2] + want[2:] / 2
    intersection = np.prod(np.maximum(np.minimum(high, want_high) - np.maximum(low, want_low), 0))
    union = np.prod(box[2:]) + np.prod(want[2:]) - intersection
    hull = np.prod(np.maximum(high, want_high) - np.minimum(low, want_low))
    giou = intersection / (union + 1e-6) - (hull - union) / (hull + 1e-6)
    logits = np.asarray(outputs.class_logits[k, b, q])
    expected = (
        -1 / (1 + np.exp(logits[1] - logits[0]))
        + 5 * np.abs(box - want).sum()
        - 2 * giou
        + 2 * np.abs(np.asarray(outputs.points[b, q]) - want[:2]).sum()
    )
    np.testing.assert_allclose(cost[k, b, q, t], expected, rtol=1e-5)


def test_match_ignores_padding_and_gives_each_target_its_own_query():
    outputs, targets = problem(np.random.default_rng(2))
    weights = LossConfig()
    matches, cost = jax.tree.map(
        np.asarray,
        jax.jit(lambda o, t: (matching.match(o, t, weights), matching.match_cost(o, t, weights)))(outputs, targets),
    )
    np.testing.assert_array_equal(matches.matched, np.broadcast_to(targets.valid, matches.matched.shape))
    for k in range(2):
        for b in range(3):
            count = int(targets.valid[b].sum())
            rows, columns = linear_sum_assignment(cost[k, b, :, :count])
            np.testing.assert_array_equal(matches.query_index[k, b, columns], rows)
            assert (matches.query_index[k, b, count:] == 0).all()


def test_no_gradient_flows():
    outputs, targets = problem(np.random.default_rng(3))

    def summed(outputs):
        return matching.match_cost(outputs, targets, LossConfig()).sum()

    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(jax.grad(summed))(outputs)))
