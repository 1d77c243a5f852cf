"""Boxes: conversions, IoU and GIoU, on jax and on numpy arrays alike.

Boxes are (cx, cy, w, h) or (x1, y1, x2, y2) in the last axis, in any unit that all arguments share. Numpy arrays give numpy
arrays, so that metrics need no device; everything else gives jax arrays.
"""

from types import ModuleType

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from instancevg_jax.types import Array

LOSS_EPS = 1e-6  # the original's losses and matching add it to every denominator


def cxcywh_to_xyxy(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(cx, cy, w, h) -> (x1, y1, x2, y2). Source: layers/box_ops.py."""
    xp = _namespace(boxes)
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return xp.concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(x1, y1, x2, y2) -> (cx, cy, w, h). Source: layers/box_ops.py."""
    xp = _namespace(boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return xp.concatenate([(low + high) / 2, high - low], axis=-1)


def area(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Width times height; negative sides are not corrected."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def paired_iou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float = 0.0) -> Float[Array, "*n"]:
    """IoU of a[i] with b[i] (leading axes broadcast), xyxy. With `eps` 0 two empty boxes have IoU 0."""
    intersection, union = _intersection_and_union(a, b)
    return _ratio(intersection, union, eps)


def paired_giou(a: Float[Array, "*#n 4"], b: Float[Array, "*#n 4"], eps: float = 0.0) -> Float[Array, "*n"]:
    """Generalized IoU in [-1, 1] of a[i] with b[i], xyxy: IoU minus the empty share of their hull."""
    xp = _namespace(a)
    intersection, union = _intersection_and_union(a, b)
    sides = xp.maximum(xp.maximum(a[..., 2:], b[..., 2:]) - xp.minimum(a[..., :2], b[..., :2]), 0)
    hull = sides[..., 0] * sides[..., 1]
    return _ratio(intersection, union, eps) - _ratio(hull - union, hull, eps)


def pairwise_iou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"], eps: float = 0.0) -> Float[Array, "*b n m"]:
    """IoU of every box of `a` with every box of `b`, xyxy."""
    return paired_iou(a[..., :, None, :], b[..., None, :, :], eps)


def pairwise_giou(a: Float[Array, "*b n 4"], b: Float[Array, "*b m 4"], eps: float = 0.0) -> Float[Array, "*b n m"]:
    """Generalized IoU of every box of `a` with every box of `b`, xyxy."""
    return paired_giou(a[..., :, None, :], b[..., None, :, :], eps)


def _namespace(array: Shaped[Array, "..."]) -> ModuleType:
    return np if isinstance(array, np.ndarray) else jnp


def _intersection_and_union(a: Array, b: Array) -> tuple[Array, Array]:
    xp = _namespace(a)
    sides = xp.maximum(xp.minimum(a[..., 2:], b[..., 2:]) - xp.maximum(a[..., :2], b[..., :2]), 0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, area(a) + area(b) - intersection


def _ratio(numerator: Array, denominator: Array, eps: float) -> Array:
    if eps:
        return numerator / (denominator + eps)
    xp = _namespace(numerator)
    return xp.where(denominator > 0, numerator / xp.where(denominator > 0, denominator, 1), 0)
