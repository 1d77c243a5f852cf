"""Boxes: conversions, IoU and GIoU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from instancevg_jax import boxes

A = np.array([[0, 0, 4, 4], [2, 2, 6, 6], [10, 10, 12, 14], [5, 5, 5, 5]], np.float32)


def by_counting(a, b):
    """IoU and GIoU of two integer boxes from unit cells."""
    grid = np.zeros((2, 16, 16), bool)
    for cells, (x1, y1, x2, y2) in zip(grid, (a.astype(int), b.astype(int)), strict=True):
        cells[y1:y2, x1:x2] = True
    intersection, union = (grid[0] & grid[1]).sum(), (grid[0] | grid[1]).sum()
    low, high = np.minimum(a[:2], b[:2]), np.maximum(a[2:], b[2:])
    hull = np.prod(high - low)
    iou = intersection / union if union else 0.0
    return iou, iou - ((hull - union) / hull if hull else 0.0)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_iou_and_giou_equal_counting_cells(array):
    want = np.array([[by_counting(a, b) for b in A] for a in A])
    iou, giou = boxes.pairwise_iou(array(A), array(A)), boxes.pairwise_giou(array(A), array(A))
    assert isinstance(iou, np.ndarray) == (array is np.asarray)
    np.testing.assert_allclose(iou, want[..., 0], atol=1e-6)
    np.testing.assert_allclose(giou, want[..., 1], atol=1e-6)
    np.testing.assert_allclose(boxes.paired_giou(array(A), array(A[::-1].copy())), want[range(4), range(3, -1, -1), 1])


def test_eps_is_added_to_the_denominators():
    iou = boxes.paired_iou(jnp.array([0.0, 0, 1e-3, 1e-3]), jnp.array([0.0, 0, 1e-3, 1e-3]), boxes.LOSS_EPS)
    np.testing.assert_allclose(iou, 0.5, rtol=1e-5)


def test_conversions_are_inverse():
    given = np.random.default_rng(0).random((3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(boxes.xyxy_to_cxcywh(boxes.cxcywh_to_xyxy(given)), given, atol=1e-6)
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(np.array([0.5, 0.4, 0.2, 0.6])), [0.4, 0.1, 0.6, 0.7])


def test_gradients_are_finite_for_empty_boxes():
    zero = jnp.zeros(4)
    for eps in (0.0, boxes.LOSS_EPS):
        assert np.isfinite(jax.grad(lambda b, eps=eps: boxes.paired_giou(b, zero, eps))(zero)).all()
