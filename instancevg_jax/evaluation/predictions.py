"""Score a file of predictions, of any model. docs/evaluation.md describes the format.

A file of JSON lines, or a JSON list, has one object per record. COCO's results format, as `evaluate --coco` writes it, has one
object per predicted box; records without an entry are answered with nothing there.
"""

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from data_pipelines import masks
from data_pipelines.annotations.source import AnnotationFile, parse_json
from data_pipelines.annotations.values import segmentation
from data_pipelines.checking.conventions import is_normalized
from data_pipelines.splits import Split
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.evaluator import Evaluation
from instancevg_jax.evaluation.metrics import TASKS, Answer, Metrics, Row, Truth, checked_scores, measure

KEYS = ("record", "record_id", "boxes", "scores", "masks", "mask", "no_target")
RULE = "predictions"  # in place of a no-target rule, which the model that wrote the file has applied


class Prediction(NamedTuple):
    """The prediction for one record, in the picture's own pixels. None: not in the file."""

    where: str  # for errors
    boxes: Any = None  # [N, 4], xyxy
    scores: Any = None  # [N]
    masks: Any = None  # N run-length encodings
    mask: Any = None  # run-length encoding of the merged mask
    no_target: bool | None = None


def score_predictions(path: Path, config: Config, split: str, source: Split) -> Evaluation:
    """Measure the predictions in a file on the records of a split, in the pictures' own pixels.

    Raises InputError for a file of another format, a prediction for an unknown record, two for one record, and, unless the file
    is in COCO's format, a record without a prediction.
    """
    start = time.monotonic()
    settings = config.eval
    numbers = {source.describe(record).id: record for record in range(len(source))}
    metrics = Metrics(settings.task, settings.score_threshold, settings.protocol)
    complete, in_pixels, boxed = True, False, False
    for record, prediction, whole in _read(path, numbers):
        if record in metrics.rows:
            raise InputError(f"{prediction.where}: a second prediction for record {record}; expected one per record")
        row = _measure(prediction, source, record, config)
        metrics.rows[record] = row._replace(record=record, group=source.group(record))
        complete &= whole
        for box in prediction.boxes or []:
            boxed = True
            in_pixels = in_pixels or not is_normalized(map(float, box), source.truth(record)[1].shape)
    if boxed and not in_pixels:
        raise InputError(f"{path}: all boxes look normalized to 0..1; expected pixels of the pictures")
    missing = [record for record in range(len(source)) if record not in metrics.rows]
    if missing and complete and metrics.rows:
        name = source.describe(missing[0]).id
        raise InputError(
            f"{path}: {len(missing)} of the {len(source)} records of {split!r} have no prediction, such as record "
            f'{missing[0]} ({name}); expected one for each, {{"record": {missing[0]}, "no_target": true}} where nothing is found'
        )
    for record in missing:
        row = _measure(Prediction(str(path), no_target=True), source, record, config)
        metrics.rows[record] = row._replace(record=record, group=source.group(record))
    seconds = time.monotonic() - start
    return Evaluation(split=split, rule=RULE, by_rule={RULE: metrics}, seconds=seconds, sweep={})


def _read(path: Path, numbers: Mapping[str, int]) -> Iterator[tuple[int, Prediction, bool]]:
    """Yields (record, prediction, whether the format has one object per record)."""
    objects = _objects(path)
    first = next(objects, None)
    if first is None:
        return
    if "bbox" in first[1]:
        together: dict[int, list[dict[str, Any]]] = {}
        for where, entry in itertools.chain([first], objects):
            together.setdefault(_record(where, entry, numbers), []).append(entry)
        for record, entries in together.items():
            yield record, _of_coco(f"{path}: record {record}", entries), False
        return
    for where, entry in itertools.chain([first], objects):
        yield _record(where, entry, numbers), _of_json(where, entry), True


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of the file with their places in it. JSON lines are read one at a time."""
    file = AnnotationFile(path)
    try:
        first = next(file.lines(), (1, b""))[1].removeprefix(b"\xef\xbb\xbf").lstrip()
        if first.startswith(b"["):
            entries = ((f"{path}: entry {i}", entry) for i, entry in enumerate(file.load_json()))
        else:
            entries = ((f"{path}:{i}", parse_json(line, f"line {i}")) for i, line in file.lines())
        for where, entry in entries:
            if not isinstance(entry, dict):
                raise InputError(f"{where}: expected a JSON object per prediction")
            yield where, entry
    except InputError as error:
        known = "" if str(path) in str(error) else f"{path}: "
        expected = "; expected a JSON list or one JSON object per line" if "not valid JSON" in str(error) else ""
        raise InputError(f"--predictions {known}{error}{expected}") from error


def _record(where: str, entry: dict[str, Any], numbers: Mapping[str, int]) -> int:
    """The number of the record that an object refers to."""
    number, name = entry.get("record"), entry.get("record_id")
    if isinstance(name, str) and name in numbers:
        if number not in (None, numbers[name]):
            raise InputError(f"{where}: record {number} is not {name!r}, which is record {numbers[name]} of the split")
        return numbers[name]
    if name is None and type(number) is int and 0 <= number < len(numbers):
        return number
    stated = f"record_id {name!r}" if name is not None else f"record {number!r}"
    known = f"record 0 to {len(numbers) - 1}, or record_id such as {next(iter(numbers), '')!r}"
    raise InputError(f"{where}: {stated} is not in the split; expected {known}")


def _of_json(where: str, entry: dict[str, Any]) -> Prediction:
    unknown = sorted(entry.keys() - set(KEYS))
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(KEYS)}")
    prediction = Prediction(where, *(entry.get(key) for key in KEYS[2:]))
    if prediction.no_target not in (None, True, False):
        raise InputError(f"{where}: no_target is {prediction.no_target!r}; expected true or false")
    if prediction.no_target and (prediction.boxes or prediction.masks):
        raise InputError(f"{where}: no_target is true, but there are boxes or masks; expected one or the other")
    if not prediction.no_target and prediction.boxes is None and prediction.mask is None and prediction.masks is None:
        raise InputError(f"{where}: has no boxes, masks or mask; expected some of them, or no_target")
    for key in ("boxes", "scores", "masks"):
        if not isinstance(entry.get(key), (list, type(None))):
            raise InputError(f"{where}: {key} is {entry[key]!r}; expected a list")
    return prediction


def _of_coco(where: str, entries: list[dict[str, Any]]) -> Prediction:
    boxes = []
    for entry in entries:
        try:
            x, y, width, height = map(float, entry["bbox"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where}: bbox is {entry.get('bbox')!r}; expected x, y, width, height") from error
        boxes.append([x, y, x + width, y + height])
    encodings = [entry.get("segmentation") for entry in entries]
    some = any(encoding is not None for encoding in encodings)
    return Prediction(where, boxes, [entry.get("score", 1.0) for entry in entries], encodings if some else None)


def _measure(prediction: Prediction, source: Split, record: int, config: Config) -> Row:
    """The row; columns that need something that is not in the file are NaN."""
    true_boxes, true_mask = source.truth(record)
    truth = Truth(true_boxes, true_mask, not source.describe(record).object_ids)
    settings = config.eval
    try:
        scores = _scores(prediction)
        merged = _merged(prediction, scores, true_mask.shape, settings.score_threshold, settings.task)
        mask = np.zeros(true_mask.shape, bool) if merged is None else merged
        boxes = prediction.boxes or []
        answer = Answer(boxes, scores[: len(boxes)] if boxes else [], mask)
    except InputError as error:
        raise InputError(f"{prediction.where}: {error}") from error
    row = measure(answer, truth, settings.score_threshold, settings.protocol)
    nan = float("nan")
    row = row._replace(says_none=float(_says_none(prediction, scores, mask, settings.score_threshold)), coverage=nan)
    if prediction.boxes is None and not prediction.no_target:
        row = row._replace(num_predictions=nan, true_positives=nan, f1=nan, best_box_iou=nan)
    if merged is None:
        row = row._replace(intersection=nan, union=nan, predicted_area=nan, iou=nan)
    return row


def _scores(prediction: Prediction) -> np.ndarray:
    """One score per box or mask; 1 if the file has no scores."""
    count = len(prediction.boxes if prediction.boxes is not None else prediction.masks or [])
    return np.ones(count) if prediction.scores is None else checked_scores(prediction.scores, count)


def _merged(
    prediction: Prediction, scores: np.ndarray, shape: tuple[int, int], threshold: float, task: str
) -> Bool[np.ndarray, "H W"] | None:
    """The stated merged mask, or the union of the masks whose score is above the threshold; None where there are no masks."""
    if prediction.no_target:
        return np.zeros(shape, bool)
    if prediction.mask is not None:
        return _decoded(prediction.mask, shape)
    if prediction.masks is None:
        return None
    if len(prediction.masks) != len(scores):
        raise InputError(f"{len(prediction.masks)} masks for {len(scores)} boxes; expected as many")
    counted = scores > threshold
    if TASKS[task].always_answers and not counted.any():
        counted = np.arange(len(scores)) == (scores.argmax() if len(scores) else -1)
    chosen = [_decoded(mask, shape) for mask, counts in zip(prediction.masks, counted, strict=True) if counts]
    return np.logical_or.reduce([np.zeros(shape, bool), *chosen])


def _says_none(prediction: Prediction, scores: np.ndarray, mask: np.ndarray, threshold: float) -> bool:
    if prediction.no_target is not None:
        return prediction.no_target
    if prediction.boxes is None and prediction.masks is None:
        return not mask.any()
    return not (scores > threshold).any()


def _decoded(encoding: Any, shape: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A mask in any form that annotations may have, such as COCO's run-length encoding, compressed or not."""
    stated = segmentation(encoding, "a mask", folders=())
    if stated is None:
        raise InputError("a mask is missing or null; expected COCO's run-length encoding")
    return masks.decode(masks.sized(stated, *shape)).astype(bool)
