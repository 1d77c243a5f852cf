"""The metrics of every task: REC and RES (RefCOCO), GREC and GRES (gRefCOCO), Ref-ZOM, R-RefCOCO. Numpy, on the host.

Every record is measured once, into one row of numbers; each task's metrics are a summary of the rows. Rows are kept, so a
report can show them, and they carry the record's number, so results from several processes merge without counting a record
twice: `a + b`, or `Metrics.from_array` of gathered `to_array()`s.

Sources: evaluations/{grefcoco,refzom,rrefcoco}.py and apis/test.py of the original. `protocol="official"` gives its numbers,
`protocol="strict"` mends what is a slip there:

| what | official | strict |
|---|---|---|
| GREC: a predicted box is right | GIoU >= 0.5 | IoU >= 0.5 |
| GREC: a query counts | score >= threshold (elsewhere >) | score > threshold everywhere |
| T_acc, N_acc without a record to count | 0; T_acc and N_acc of GRES are 0 too if a set has no empty record | NaN |
| R-RefCOCO Pr@X | of the running sum of IoU within a group | of each sentence's IoU |

Both protocols: a sum over nothing is NaN where the original divides by zero, and R-RefCOCO leaves a group without a no-target
sentence out of mRR, and one without a targeted sentence out of mIoU and rIoU, where the original stops with an error.
All metrics are percentages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from instancevg_jax import boxes as box_ops
from instancevg_jax.answers.postprocess import resize_mask
from instancevg_jax.errors import InputError
from instancevg_jax.types import Predictions, Targets

COLUMNS: tuple[str, ...] = (
    "record",  # number of the record in its split; what makes a row unique
    "group",  # R-RefCOCO: which group of sentences it belongs to; -1 for none
    "empty",  # 1 where nothing is meant
    "says_none",  # 1 where no query's score is above the threshold
    "intersection",  # pixels of merged mask and truth
    "union",
    "predicted_area",
    "iou",  # intersection / union; 0 where the union is empty
    "num_targets",
    "num_predictions",  # queries that GREC counts
    "true_positives",
    "f1",
    "best_box_iou",  # of the best scored box with the (first) true box
    "coverage",  # share of the true boxes that hold a selected point
)
Row: TypeAlias = dict[str, float]
Columns: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What was predicted for a record. One row a query that gives an answer, in any order."""

    boxes_xyxy: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    mask: np.ndarray  # [H, W] bool, merged
    points_xy: np.ndarray  # [P, 2], all selected points


@dataclass(frozen=True)
class Truth:
    """What is right, in the same pixels as the answer. `empty`: the sentence means nothing."""

    boxes_xyxy: np.ndarray  # [M, 4]
    mask: np.ndarray  # [H, W] bool, merged
    empty: bool


def resized(answer: Answer, height: int, width: int) -> Answer:
    """The answer in the pixels of a picture of height x width."""
    scale = np.array([width / answer.mask.shape[1], height / answer.mask.shape[0]], np.float32)
    return Answer(
        answer.boxes_xyxy * np.tile(scale, 2),
        answer.scores,
        resize_mask(answer.mask, height, width),
        answer.points_xy * scale,
    )


def answers(predictions: Predictions) -> list[Answer]:
    """The records of a batch, without the queries that post-processing removed (their boxes are empty)."""
    host = [
        np.asarray(x) for x in (predictions.boxes_xyxy, predictions.scores, predictions.mask, predictions.points_xy)
    ]
    return [
        Answer(boxes[present := (boxes[:, 2:] > boxes[:, :2]).all(1)], scores[present], mask, points)
        for boxes, scores, mask, points in zip(*host, strict=True)
    ]


def truths(targets: Targets) -> list[Truth]:
    """The records of a batch at the network's picture size."""
    host = [np.asarray(x) for x in (targets.boxes, targets.valid, targets.mask)]
    height, width = host[2].shape[1:]
    size = np.array([width, height, width, height], np.float32)
    return [
        Truth(box_ops.cxcywh_to_xyxy(boxes[valid]) * size, mask, not valid.any())
        for boxes, valid, mask in zip(*host, strict=True)
    ]


class Metrics:
    """Rows of one split and task, and their summary.

    `task` is that of EvalConfig: "gres", "refcoco", "refzom" or "rrefcoco". Raises InputError for another task or protocol.
    """

    def __init__(self, task: str, score_threshold: float = 0.7, protocol: str = "official"):
        if task not in TASKS:
            raise InputError(f"eval.task is {task!r}; expected one of {', '.join(TASKS)}")
        if protocol not in ("official", "strict"):
            raise InputError(f"protocol is {protocol!r}; expected official or strict")
        self.task, self.score_threshold, self.protocol = task, score_threshold, protocol
        self.rows: dict[int, Row] = {}

    def update(self, answer: Answer, truth: Truth, record: int, group: int = -1) -> Row:
        """Measure a record and keep its row, which is returned. A record that is already there is replaced."""
        row = {"record": float(record), "group": float(group)}
        row |= measure(answer, truth, self.score_threshold, self.protocol)
        self.rows[record] = row
        return row

    def __add__(self, other: "Metrics") -> "Metrics":
        """The rows of both, those of `other` where both have one."""
        if (self.task, self.score_threshold, self.protocol) != (other.task, other.score_threshold, other.protocol):
            raise ValueError("metrics of different task, threshold or protocol do not add up")
        total = Metrics(self.task, self.score_threshold, self.protocol)
        total.rows = self.rows | other.rows
        return total

    def to_array(self) -> Float[np.ndarray, "N columns"]:
        """All rows in the order of COLUMNS, float64, sorted by record."""
        rows = [[self.rows[record][name] for name in COLUMNS] for record in sorted(self.rows)]
        return np.array(rows, np.float64).reshape(-1, len(COLUMNS))

    @classmethod
    def from_array(
        cls, rows: Float[np.ndarray, "N columns"], task: str, score_threshold: float, protocol: str
    ) -> "Metrics":
        """The inverse of `to_array`. Rows with a negative record number are padding and left out."""
        metrics = cls(task, score_threshold, protocol)
        metrics.rows = {int(row[0]): dict(zip(COLUMNS, map(float, row), strict=True)) for row in rows if row[0] >= 0}
        return metrics

    def result(self) -> dict[str, float]:
        """The task's metrics in percent; NaN where there is nothing to measure.

        Raises InputError under task rrefcoco for records without a group.
        """
        columns = dict(zip(COLUMNS, self.to_array().T, strict=True))
        result = TASKS[self.task].summarize(columns, self.protocol)
        result["coverage"] = _percent(columns["coverage"][columns["num_targets"] > 0])
        return {name: float(value) for name, value in result.items()}


def measure(answer: Answer, truth: Truth, score_threshold: float, protocol: str) -> Row:
    """All numbers of one record but "record" and "group"; see COLUMNS."""
    pixels = np.array([np.logical_and(answer.mask, truth.mask).sum(), truth.mask.sum(), answer.mask.sum()])
    return measure_at((score_threshold,), pixels[None], answer, truth, protocol)[0]


def measure_at(
    thresholds: Sequence[float], pixels: Int[np.ndarray, "S 3"], answer: Answer, truth: Truth, protocol: str
) -> list[Row]:
    """The row of `measure` for each score threshold. `answer.mask` is not looked at.

    Args:
        thresholds: S score thresholds.
        pixels: for each threshold the numbers of pixels of (merged mask and truth, truth, merged mask).
        answer: the boxes, scores and points.
        truth: the boxes.
        protocol: "official" or "strict".
    """
    true_boxes = np.zeros((0, 4)) if truth.empty else np.asarray(truth.boxes_xyxy, np.float64).reshape(-1, 4)
    boxes = np.asarray(answer.boxes_xyxy, np.float64).reshape(-1, 4)
    overlaps = (box_ops.pairwise_giou if protocol == "official" else box_ops.pairwise_iou)(boxes, true_boxes)
    common = {
        "empty": float(truth.empty),
        "num_targets": float(len(true_boxes)),
        "best_box_iou": best_box_iou(boxes, answer.scores, np.asarray(truth.boxes_xyxy, np.float64).reshape(-1, 4)),
        "coverage": coverage(answer.points_xy, true_boxes),
    }
    rows = []
    for threshold, (intersection, wanted, predicted) in zip(thresholds, pixels.astype(float).tolist(), strict=True):
        union = wanted + predicted - intersection
        areas = {"intersection": intersection, "union": union, "predicted_area": predicted}
        rows.append(
            {**common, **areas, "iou": intersection / union if union else 0.0}
            | _counted(overlaps, answer.scores, threshold, protocol)
        )
    return rows


def _counted(overlaps: Float[np.ndarray, "N M"], scores: np.ndarray, threshold: float, protocol: str) -> Row:
    """What depends on which queries count."""
    counts = scores >= threshold if protocol == "official" else scores > threshold
    hits, predicted, wanted = count_matches(overlaps[counts], 0.5), int(counts.sum()), overlaps.shape[1]
    return {
        "says_none": float(not (scores > threshold).any()),
        "num_predictions": float(predicted),
        "true_positives": float(hits),
        "f1": 2 * hits / (predicted + wanted) if predicted + wanted else 1.0,
    }


def count_matches(overlaps: Float[np.ndarray, "N M"], threshold: float) -> int:
    """How many pairs a greedy one-to-one matching finds, best overlap first, none below `threshold`."""
    left = np.array(overlaps, np.float64)
    hits = 0
    while left.size and left.max() >= threshold:
        row, column = np.unravel_index(left.argmax(), left.shape)
        left[row, :] = left[:, column] = -np.inf
        hits += 1
    return hits


def best_box_iou(
    boxes_xyxy: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"], true_boxes: Float[np.ndarray, "M 4"]
) -> float:
    """IoU of the best scored box, whatever its score, with the first true box; 0 where either is missing.

    Among equal scores the box that is greatest in (x1, y1, x2, y2) order speaks, as in the original.
    """
    if len(boxes_xyxy) == 0 or len(true_boxes) == 0:
        return 0.0
    best = max(range(len(scores)), key=lambda i: (scores[i], *boxes_xyxy[i]))
    return float(box_ops.paired_iou(boxes_xyxy[best], true_boxes[0]))


def coverage(points_xy: Float[np.ndarray, "P 2"], true_boxes: Float[np.ndarray, "M 4"]) -> float:
    """Share of the true boxes with a point in them, borders included; NaN without a box.

    Source: `cover_acc` of models/det_seg/mix_gref_unimodel.py, without its swap of height and width (pictures are square there).
    """
    if len(true_boxes) == 0:
        return float("nan")
    inside = (points_xy[:, None] >= true_boxes[:, :2]) & (points_xy[:, None] <= true_boxes[:, 2:])
    return float(inside.all(-1).any(0).mean())


def _percent(values: np.ndarray) -> float:
    return 100.0 * float(values.mean()) if len(values) else float("nan")


def _ratio(numerator: float, denominator: float) -> float:
    return 100.0 * float(numerator) / float(denominator) if denominator else float("nan")


def _precision(iou: np.ndarray, thresholds: tuple[float, ...], name: str = "Pr") -> dict[str, float]:
    return {f"{name}@{threshold}": _percent(iou >= threshold) for threshold in thresholds}


def _gres(rows: Columns, protocol: str) -> dict[str, float]:
    """GREC (F1, N_acc, T_acc) and GRES (gIoU, cIoU, gres_N_acc, gres_T_acc, Pr@).

    gIoU: 1 for an empty record answered with "none", else 0; 0 for a targeted one answered so. cIoU: intersections over unions,
    where a missed target still brings its union, a false target its predicted area, and a right "none" nothing.
    """
    empty, none = rows["empty"] == 1, rows["says_none"] == 1
    iou = np.where(empty, none, np.where(none, 0.0, rows["iou"]))
    intersection = np.where(empty | none, 0.0, rows["intersection"])
    union = np.where(empty & none, 0.0, rows["union"])
    counted = rows["num_predictions"] > 0
    accuracies = {
        "N_acc": _percent(~counted[empty]),
        "T_acc": _percent(counted[~empty]),
        "gres_N_acc": _percent(none[empty]),
        "gres_T_acc": _percent(~none[~empty]),
    }
    if protocol == "official":
        accuracies = {name: 0.0 if np.isnan(value) else value for name, value in accuracies.items()}
        if not empty.any():
            accuracies |= {"gres_N_acc": 0.0, "gres_T_acc": 0.0}
    return {
        "gIoU": _percent(iou),
        "cIoU": _ratio(intersection.sum(), union.sum()),
        "F1": _percent(rows["f1"] >= 1),
        **accuracies,
        **_precision(iou[~empty], (0.7, 0.8, 0.9)),
    }


def _refcoco(rows: Columns, protocol: str) -> dict[str, float]:
    """REC (DetACC@) and RES (mIoU, oIoU, MaskACC@). The two protocols agree."""
    thresholds = (0.5, 0.6, 0.7, 0.8, 0.9)
    return {
        **_precision(rows["best_box_iou"], thresholds, "DetACC"),
        "mIoU": _percent(rows["iou"]),
        "oIoU": _ratio(rows["intersection"].sum(), rows["union"].sum()),
        **_precision(rows["iou"], thresholds, "MaskACC"),
    }


def _refzom(rows: Columns, protocol: str) -> dict[str, float]:
    """mIoU, oIoU and Pr@ over targeted records, Acc over empty ones. The two protocols agree."""
    targeted = rows["empty"] == 0
    return {
        "mIoU": _percent(rows["iou"][targeted]),
        "oIoU": _ratio(rows["intersection"][targeted].sum(), rows["union"][targeted].sum()),
        "Acc": _percent(rows["says_none"][~targeted]),
        **_precision(rows["iou"][targeted], (0.5, 0.6, 0.7, 0.8, 0.9)),
    }


def _rrefcoco(rows: Columns, protocol: str) -> dict[str, float]:
    """mIoU, oIoU over targeted sentences; mRR: no-target sentences answered with "none"; rIoU: with the area of false targets.

    mIoU, mRR and rIoU are means over groups (sentences about one object). Source: Towards Robust Referring Image Segmentation.
    """
    if (rows["group"] < 0).any():
        lone = int(rows["record"][rows["group"] < 0][0])
        raise InputError(
            f"record {lone} is in no group; the metrics of eval.task 'rrefcoco' expect one for each record"
        )
    group_iou, group_rate, group_robust, ious = [], [], [], []
    targeted, none = rows["empty"] == 0, rows["says_none"] == 1
    for group in np.unique(rows["group"]):
        here = rows["group"] == group
        meant, meaningless = here & targeted, here & ~targeted
        iou = rows["iou"][meant]
        ious.append(np.cumsum(iou) if protocol == "official" else iou)
        if meaningless.any():
            group_rate.append(none[meaningless].mean())
        if meant.any():
            group_iou.append(iou.mean())
            union = rows["union"][meant].sum() + rows["predicted_area"][meaningless & ~none].sum()
            group_robust.append(rows["intersection"][meant].sum() / union if union else 0.0)
    return {
        "mIoU": _percent(np.array(group_iou)),
        "oIoU": _ratio(rows["intersection"][targeted].sum(), rows["union"][targeted].sum()),
        "mRR": _percent(np.array(group_rate)),
        "rIoU": _percent(np.array(group_robust)),
        **_precision(np.concatenate([*ious, []]), (0.5, 0.6, 0.7, 0.8, 0.9)),
    }


@dataclass(frozen=True)
class Task:
    """What `eval.task` stands for. The last two are the metrics by which the original keeps its best models (tools/train.py)."""

    summarize: Callable[[Columns, str], dict[str, float]]  # (rows, protocol) -> metrics, percent
    headline: str  # the metric to compare models by
    detection: str
    segmentation: str


TASKS = {
    "gres": Task(_gres, headline="gIoU", detection="F1", segmentation="cIoU"),
    "refcoco": Task(_refcoco, headline="mIoU", detection="DetACC@0.5", segmentation="mIoU"),
    "refzom": Task(_refzom, headline="mIoU", detection="mIoU", segmentation="Acc"),
    "rrefcoco": Task(_rrefcoco, headline="rIoU", detection="mIoU", segmentation="mRR"),
}
