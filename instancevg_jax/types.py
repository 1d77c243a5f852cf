"""The pytrees that travel between data, model, losses and metrics.

Dimensions, everywhere in this project:

    B batch            H W picture            h w feature grid      P patches (h * w)
    L text tokens      D backbone width       C head width          Q queries
    T padded targets   N heads (or objects)   K decoder layers

`boxes` are (cx, cy, w, h) in [0, 1]; `boxes_xyxy` are (x1, y1, x2, y2) in pixels. `*_logits` are before sigmoid or softmax.
`token_mask` is True where a token is real. The shapes of fields are given in comments and not checked, because tree operations
rebuild the classes with leaves of any kind.
"""

from typing import Any

from flax import struct

Array = Any  # jax.Array, numpy.ndarray or a ShapeDtypeStruct: anything that a pytree may hold


@struct.dataclass
class Targets:
    """What a sentence means in its picture, padded to T objects. Padding rows are zero."""

    boxes: Array  # [B, T, 4] float32, cxcywh in [0, 1]
    valid: Array  # [B, T] bool, True for a real object
    masks: Array  # [B, T, H, W] bool, one mask per object at the network's picture size
    mask: Array  # [B, H, W] bool, merged mask of everything that is meant


@struct.dataclass
class Batch:
    """One batch of records, all shapes static."""

    images: Array  # [B, H, W, 3] float32, normalized RGB
    token_ids: Array  # [B, L] int32
    token_mask: Array  # [B, L] bool, True = real token (BOS and EOS count as real)
    targets: Targets
    example_weight: Array  # [B] float32, 0 for a record that only fills up the last batch
    item: Array  # [B] int32, which item of its split each example is


@struct.dataclass
class Outputs:
    """The outputs of the model. The last of the K decoder layers is the answer; the others are supervised in training."""

    class_logits: Array  # [K, B, Q, 2] float32, index 0 = object, 1 = no object
    boxes: Array  # [K, B, Q, 4] float32, cxcywh in [0, 1]
    mask_logits: Array  # [B, Q, H, W] float32
    global_mask_logits: Array  # [B, H, W] float32
    existence_logits: Array  # [B, 2] float32, index 0 = something is meant, 1 = nothing
    points: Array  # [B, Q, 2] float32, (x, y) in [0, 1]: centre of the patch each query starts from
    point_map: Array  # [B, h, w] float32, pooled text-to-image attention the points were selected on


@struct.dataclass
class Matches:
    """The query that is matched to each target, for every decoder layer."""

    query_index: Array  # [K, B, T] int32, the query matched to target t; 0 where not `matched`
    matched: Array  # [K, B, T] bool, False for padding and for targets in excess of Q


@struct.dataclass
class Predictions:
    """Scored answers at the network's picture size, one row per query."""

    boxes_xyxy: Array  # [B, Q, 4] float32, pixels of the network's picture
    scores: Array  # [B, Q] float32 in [0, 1]
    masks: Array  # [B, Q, H, W] bool, every query's own mask
    keep: Array  # [B, Q] bool, queries whose score passes the threshold
    mask: Array  # [B, H, W] bool, the merged answer
    no_target_probability: Array  # [B] float32
    points_xy: Array  # [B, Q, 2] float32, pixels of the network's picture
