"""The metrics of every task: REC and RES (RefCOCO), GREC and GRES (gRefCOCO), Ref-ZOM, R-RefCOCO. Numpy, on the host.

Each record is measured once as a `Row` of numbers, and each task's metrics summarize the rows. Rows contain the record's number,
so that results of several processes can be merged without counting a record twice.

    metrics = Metrics("gres", score_threshold=0.7, protocol="official")
    metrics.update(Answer(boxes, scores, mask), Truth(true_boxes, true_mask, empty=False), record=0)
    print(metrics.result())

Sources: evaluations/{grefcoco,refzom,rrefcoco}.py and apis/test.py of the original. `protocol="official"` reproduces its numbers,
`protocol="strict"` corrects its mistakes:

| what | official | strict |
|---|---|---|
| GREC: a predicted box is correct | GIoU >= 0.5 | IoU >= 0.5 |
| GREC: a query counts | score >= threshold in float64 (elsewhere > in float32) | score > threshold everywhere |
| T_acc, N_acc without a record to count | 0; T_acc and N_acc of GRES are both 0 if no record is empty | NaN |
| R-RefCOCO Pr@X | of the running sum of IoU within a group | of each sentence's IoU |

Under both protocols, a mean over nothing is NaN, where the original divides by zero. R-RefCOCO's mRR omits groups without a
no-target sentence, and mIoU and rIoU omit groups without a targeted one, where the original stops with an error.
All metrics are percentages.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from instancevg_jax import boxes as box_ops
from instancevg_jax.answers.postprocess import resize_mask
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.types import Predictions, Targets


class Row(NamedTuple):
    """The measurements of one record; NaN for what the answer does not contain."""

    record: float  # number of the record in its split; unique
    group: float  # R-RefCOCO: the group of sentences that the record belongs to; -1 for none
    empty: float  # 1 where the sentence has no target
    says_none: float  # 1 where no query's score is above the threshold
    intersection: float  # pixels of merged mask and truth
    union: float
    predicted_area: float
    iou: float  # intersection / union; 0 where the union is empty
    num_targets: float
    num_predictions: float  # queries that GREC counts
    true_positives: float
    f1: float
    best_box_iou: float  # of the best scored box with the (first) true box
    coverage: float  # share of the true boxes that contain a selected point


Columns: TypeAlias = dict[str, np.ndarray]  # a column of many rows, by its name in Row


@dataclass(frozen=True)
class Answer:
    """The prediction for a record: one box and score per query that gives an answer, in any order.

    Lists are converted to arrays, and masks of 0 and 1 or of 0 and 255 to bool. Raises InputError for anything else.
    """

    boxes_xyxy: Any  # [N, 4], pixels of the mask
    scores: Any  # [N]
    mask: Any  # [H, W] bool, merged
    points_xy: Any = field(default_factory=lambda: np.zeros((0, 2)))  # [P, 2], all selected points

    def __post_init__(self) -> None:
        boxes, points = _boxes(self.boxes_xyxy, "the predicted boxes"), _numbers(self.points_xy, "the points")
        if points.size % 2 or points.ndim > 2:
            raise InputError(f"the points have shape {points.shape}; expected [P, 2], x and y in pixels")
        scores = checked_scores(self.scores, len(boxes))
        for name, value in (("boxes_xyxy", boxes), ("scores", scores), ("points_xy", points.reshape(-1, 2))):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "mask", _mask(self.mask, "the predicted mask"))


@dataclass(frozen=True)
class Truth:
    """The annotation of a record, in the pixels of the answer. Converted as an `Answer` is; raises InputError as it does."""

    boxes_xyxy: Any  # [M, 4]
    mask: Any  # [H, W] bool, merged
    empty: bool  # the sentence has no target

    def __post_init__(self) -> None:
        if not isinstance(self.empty, bool | np.bool_):
            raise InputError(f"empty is {self.empty!r}; expected True or False")
        object.__setattr__(self, "boxes_xyxy", _boxes(self.boxes_xyxy, "the true boxes"))
        if self.empty and len(self.boxes_xyxy):
            raise InputError("empty is True, but there are true boxes; expected none")
        object.__setattr__(self, "mask", _mask(self.mask, "the true mask"))


def _numbers(values: Any, what: str) -> np.ndarray:
    """An array of floats; float arrays keep their dtype."""
    array = _array(values, what)
    if np.issubdtype(array.dtype, np.floating):
        return array
    try:
        if array.dtype.kind not in "bc":
            return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{what} are not numbers in rows of equal length, such as {array.ravel()[0]!r}")


def _array(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except Exception as error:  # tensors of other libraries raise their own, on another device for example
        raise InputError(f"{what} cannot be made an array, rows of equal length ({first_line(error)})") from error


def checked_scores(values: Any, count: int) -> Float[np.ndarray, " N"]:
    """`count` scores as floats. Raises InputError unless they are numbers from 0 to 1."""
    scores = _numbers(values, "the scores") if values is not None else np.ones(())
    if scores.shape != (count,):
        raise InputError(f"the scores have shape {scores.shape}; expected [{count}], one per predicted box")
    if not ((scores >= 0) & (scores <= 1)).all():
        wrong = scores[~((scores >= 0) & (scores <= 1))][0]
        raise InputError(f"the scores include {wrong:g}; expected 0 to 1, as the score threshold is")
    return scores


def _boxes(values: Any, what: str) -> Float[np.ndarray, "N 4"]:
    boxes = _numbers(values, what)
    if boxes.size == 0 or boxes.shape == (4,):
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise InputError(f"{what} have shape {boxes.shape}; expected [N, 4] finite numbers: x1, y1, x2, y2 in pixels")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)][0].tolist()
        raise InputError(
            f"{what} include {wrong}; expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, not width and height"
        )
    return boxes


def _mask(values: Any, what: str) -> Bool[np.ndarray, "H W"]:
    mask = _array(values, what)
    if mask.ndim != 2 or not mask.size:
        raise InputError(f"{what} has shape {mask.shape}; expected [H, W], not empty")
    if mask.dtype == bool:
        return mask
    levels = np.unique(mask)
    if not (np.isin(levels, (0, 1)).all() or np.isin(levels, (0, 255)).all()):
        raise InputError(f"{what} has values such as {levels[-1]}; expected bool, 0 and 1, or 0 and 255")
    return mask != 0


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
    """Rows of one split under one task and protocol, and their summary.

    `task` is that of EvalConfig: "gres", "refcoco", "refzom" or "rrefcoco". Raises InputError for another task or protocol.
    """

    def __init__(
        self,
        task: str,
        score_threshold: float = 0.7,
        protocol: str = "official",
        rows: Mapping[int, Row] = MappingProxyType({}),
    ):
        if task not in list(TASKS):  # an unhashable task too
            raise InputError(f"eval.task is {task!r}; expected one of {', '.join(TASKS)}")
        if protocol not in ("official", "strict"):
            raise InputError(f"protocol is {protocol!r}; expected official or strict")
        if not isinstance(score_threshold, float | int | np.number) or not 0 <= score_threshold <= 1:
            raise InputError(f"the score threshold is {score_threshold!r}; expected a number from 0 to 1")
        self.task, self.score_threshold, self.protocol = task, score_threshold, protocol
        self.rows = dict(rows)

    def update(self, answer: Answer, truth: Truth, record: int, group: int = -1) -> Row:
        """Measure a record, and keep and return its row. An earlier row of that record is replaced.

        Raises InputError where the masks of answer and truth have different shapes, and for arguments of other types.
        """
        if not isinstance(answer, Answer) or not isinstance(truth, Truth):
            raise InputError(
                f"found {type(answer).__name__} and {type(truth).__name__}; expected an Answer and a Truth"
            )
        for name, number in (("record", record), ("group", group)):
            if not isinstance(number, int | np.integer):
                raise InputError(f"{name} is {number!r}; expected a whole number")
        row = measure(answer, truth, self.score_threshold, self.protocol)._replace(record=record, group=group)
        self.rows[record] = row
        return row

    def subset(self, records: Iterable[int]) -> "Metrics":
        """The rows of these records alone."""
        return Metrics(
            self.task, self.score_threshold, self.protocol, {record: self.rows[record] for record in records}
        )

    def columns(self) -> Columns:
        """The rows by column, float64, sorted by record."""
        rows = np.array([self.rows[record] for record in sorted(self.rows)], np.float64).reshape(-1, len(Row._fields))
        return dict(zip(Row._fields, rows.T, strict=True))

    def result(self) -> dict[str, float]:
        """The task's metrics in percent, as the protocol defines them; NaN where there is nothing to measure.

        Raises InputError under task rrefcoco for records without a group.
        """
        return self._summary(self.protocol)

    def shown(self) -> dict[str, float]:
        """`result`, but with NaN where the official protocol gives 0 although there is nothing to measure."""
        official, strict = self.result(), self._summary("strict")
        invented = {name for name, value in official.items() if value == 0 and strict[name] != 0}
        return {name: float("nan") if name in invented else value for name, value in official.items()}

    def _summary(self, protocol: str) -> dict[str, float]:
        columns = self.columns()
        result = TASKS[self.task].summarize(columns, protocol)
        result["coverage"] = _percent(columns["coverage"][columns["num_targets"] > 0])
        result["REC"] = _percent(_at_least(columns["best_box_iou"], 0.5)[columns["num_targets"] == 1])
        return {name: float(value) for name, value in result.items()}


def measure(answer: Answer, truth: Truth, score_threshold: float, protocol: str) -> Row:
    """The row of one record, with record and group -1. Raises InputError where the masks have different shapes."""
    if answer.mask.shape != truth.mask.shape:
        raise InputError(
            f"the predicted mask is {answer.mask.shape[0]} x {answer.mask.shape[1]} pixels (height x width), the true one "
            f"{truth.mask.shape[0]} x {truth.mask.shape[1]}; expected the same"
        )
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
    true_boxes = np.zeros((0, 4)) if truth.empty else truth.boxes_xyxy.astype(np.float64)
    boxes = answer.boxes_xyxy.astype(np.float64)
    overlaps = (box_ops.pairwise_giou if protocol == "official" else box_ops.pairwise_iou)(boxes, true_boxes)
    best = best_box_iou(boxes, answer.scores, truth.boxes_xyxy.astype(np.float64))
    covered = coverage(answer.points_xy, true_boxes)
    rows = []
    for threshold, (intersection, wanted, predicted) in zip(thresholds, pixels.astype(float).tolist(), strict=True):
        union = wanted + predicted - intersection
        matched = _matched(overlaps, answer.scores, threshold, protocol)
        rows.append(
            Row(
                record=-1,
                group=-1,
                empty=float(truth.empty),
                says_none=float(not (answer.scores > threshold).any()),
                intersection=intersection,
                union=union,
                predicted_area=predicted,
                iou=intersection / union if union else 0.0,
                num_targets=float(len(true_boxes)),
                num_predictions=float(matched.predictions),
                true_positives=float(matched.hits),
                f1=matched.f1,
                best_box_iou=best,
                coverage=covered,
            )
        )
    return rows


class _Matched(NamedTuple):
    """GREC's counts for a record at one threshold."""

    predictions: int
    hits: int
    f1: float


def _matched(overlaps: Float[np.ndarray, "N M"], scores: np.ndarray, threshold: float, protocol: str) -> _Matched:
    """The original compares Python floats here, so that a float32 score of 0.7 does not reach a threshold of 0.7."""
    counts = scores.astype(np.float64) >= threshold if protocol == "official" else scores > threshold
    hits, predicted, wanted = count_matches(overlaps[counts], 0.5), int(counts.sum()), overlaps.shape[1]
    return _Matched(predicted, hits, 2 * hits / (predicted + wanted) if predicted + wanted else 1.0)


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

    Among equal scores the box that is greatest in (x1, y1, x2, y2) order is taken, as in the original.
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


def _at_least(values: np.ndarray, threshold: float) -> np.ndarray:
    """1 where a value reaches the threshold, else 0; NaN stays NaN, which a comparison would turn into 0."""
    return np.where(np.isnan(values), np.nan, values >= threshold)


def _precision(iou: np.ndarray, thresholds: tuple[float, ...], name: str = "Pr") -> dict[str, float]:
    return {f"{name}@{threshold}": _percent(_at_least(iou, threshold)) for threshold in thresholds}


def _gres(rows: Columns, protocol: str) -> dict[str, float]:
    """GREC (F1, N_acc, T_acc) and GRES (gIoU, cIoU, gres_N_acc, gres_T_acc, Pr@).

    gIoU: 1 for an empty record answered with "none", else 0; 0 for a targeted one answered so. cIoU: intersections over unions,
    where a missed target still brings its union, a false target its predicted area, and a right "none" nothing.
    """
    empty, none = rows["empty"] == 1, rows["says_none"] == 1
    iou = np.where(empty, none, np.where(none, 0.0, rows["iou"]))
    intersection = np.where(empty | none, 0.0, rows["intersection"])
    union = np.where(empty & none, 0.0, rows["union"])
    counted = _at_least(rows["num_predictions"], 1)
    accuracies = {
        "N_acc": _percent(1 - counted[empty]),
        "T_acc": _percent(counted[~empty]),
        "gres_N_acc": _percent(none[empty]),
        "gres_T_acc": _percent(~none[~empty]),
    }
    if protocol == "official" and not empty.any():
        accuracies |= {"N_acc": 0.0, "gres_N_acc": 0.0, "gres_T_acc": 0.0}
    if protocol == "official" and empty.all():
        accuracies |= {"T_acc": 0.0, "gres_T_acc": 0.0}
    return {
        "gIoU": _percent(iou),
        "cIoU": _ratio(intersection.sum(), union.sum()),
        "F1": _percent(_at_least(rows["f1"], 1)),
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
        members = rows["group"] == group
        positive, negative = members & targeted, members & ~targeted
        iou = rows["iou"][positive]
        ious.append(np.cumsum(iou) if protocol == "official" else iou)
        if negative.any():
            group_rate.append(none[negative].mean())
        if positive.any():
            group_iou.append(iou.mean())
            union = rows["union"][positive].sum() + rows["predicted_area"][negative & ~none].sum()
            group_robust.append(rows["intersection"][positive].sum() / union if union else 0.0)
    return {
        "mIoU": _percent(np.array(group_iou)),
        "oIoU": _ratio(rows["intersection"][targeted].sum(), rows["union"][targeted].sum()),
        "mRR": _percent(np.array(group_rate)),
        "rIoU": _percent(np.array(group_robust)),
        **_precision(np.concatenate([*ious, []]), (0.5, 0.6, 0.7, 0.8, 0.9)),
    }


def _mean_share(row: Row) -> float:
    """A record's contribution to gIoU."""
    return row.says_none if row.empty else row.iou * (1 - row.says_none)


def _iou_or_none(row: Row) -> float:
    """IoU if there is a target; otherwise 1 if that was recognized, else 0."""
    return row.says_none if row.empty else row.iou


def _box_and_mask(row: Row) -> float:
    """REC and RES expect one answer whatever its score: the lower IoU of the best box and the mask, NaN left out."""
    return float(np.fmin(row.best_box_iou, row.iou))


@dataclass(frozen=True)
class Task:
    """Everything outside the network that differs between tasks."""

    summarize: Callable[[Columns, str], dict[str, float]]  # (columns, protocol) -> metrics in percent
    headline: str  # the metric that papers compare
    detection: str  # metric of one of the original's two best checkpoints
    segmentation: str  # metric of the other one
    tiles: tuple[str, ...]  # metrics at the top of a report
    score: Callable[
        [Row], float
    ]  # how good one answer is, 0 to 1, by the task's own rules; below FAILED it is a failure
    always_answers: bool = False  # the best query answers whatever its score


TASKS = {
    "gres": Task(_gres, "gIoU", "F1", "cIoU", ("gIoU", "cIoU", "F1", "N_acc", "T_acc"), _mean_share),
    "refcoco": Task(
        _refcoco, "mIoU", "DetACC@0.5", "mIoU", ("mIoU", "oIoU", "DetACC@0.5"), _box_and_mask, always_answers=True
    ),
    "refzom": Task(_refzom, "mIoU", "mIoU", "Acc", ("mIoU", "oIoU", "Acc"), _iou_or_none),
    "rrefcoco": Task(_rrefcoco, "rIoU", "mIoU", "mRR", ("rIoU", "mRR", "mIoU", "oIoU"), _iou_or_none),
}
FAILED = 0.5
