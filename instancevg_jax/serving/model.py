"""The predictor as the server uses it: it returns every query, so that one batch serves requests with any threshold."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax.answers.grounding import Grounding, encode_mask
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import check_header, max_pixels

PIXELS = (
    25_000_000  # per picture, unless the environment says otherwise; the masks of every query take as many bytes each
)
EXAMPLES = {"scene-1.png": ("test", 7), "scene-2.png": ("test", 12), "scene-3.png": ("test", 23)}


@dataclass(frozen=True)
class SentenceRequest:
    """A sentence about a picture, and what to return."""

    picture: bytes  # the file
    sentence: str
    score_threshold: float | None  # None: the model's own
    all_queries: bool


class Model:
    """A predictor as the server uses it: blocking functions that are safe to call from one thread at a time."""

    def __init__(self, predictor: Predictor) -> None:
        """`max_batch` is the predictor's batch size."""
        self._predictor = predictor
        self.max_batch = predictor.batch_size

    def check(self, data: bytes, name: str) -> None:
        """Raise InputError for a file that does not start as a picture does, and for one of too many pixels."""
        check_header(data, name, max_pixels(PIXELS))

    def answer(self, questions: Sequence[SentenceRequest]) -> list[dict[str, Any] | InputError]:
        """The answers as JSON values, in order; an InputError where a picture is damaged or a sentence has no words."""
        pairs = [(question.picture, question.sentence) for question in questions]
        found = self._predictor.predict_many(pairs, score_threshold=0.0, mask="global")
        return [
            answer if isinstance(answer, InputError) else self._to_json(question, answer)
            for question, answer in zip(questions, found, strict=True)
        ]

    def warm_up(self) -> None:
        """Compile the programs that answer one question and a full batch."""
        picture = _encoded(*EXAMPLES["scene-1.png"])
        for count in (1, self.max_batch):
            self.answer([SentenceRequest(picture, "the red circle", None, False)] * count)

    def about(self) -> dict[str, Any]:
        """What the model is, its settings, and example pictures with sentences."""
        config = self._predictor.config
        network = config.model
        settings = f"Trained on {config.data.name}; pictures are read at {network.image_width} x {network.image_height} pixels."
        examples = [
            {"name": name, "sentence": _scenes(split).describe(index).expression}
            for name, (split, index) in EXAMPLES.items()
        ]
        return {
            "notes": list(self._predictor.notes),
            "description": " ".join((*(f"{note[0].upper()}{note[1:]}." for note in self._predictor.notes), settings)),
            "score_threshold": config.eval.score_threshold,
            "mask_merge": config.eval.mask_merge,
            "max_tokens": config.model.max_tokens,
            "examples": examples,
        }

    def example(self, name: str) -> bytes | None:
        """An example picture as PNG, None for an unknown name."""
        return _encoded(*EXAMPLES[name]) if name in EXAMPLES else None

    def _to_json(self, question: SentenceRequest, grounding: Grounding) -> dict[str, Any]:
        """`grounding` holds every query, and the global mask as its merged mask."""
        settings = self._predictor.config.eval
        if question.all_queries:
            heat = None
            if grounding.evidence is not None:
                rows, columns = grounding.evidence.point_map.shape
                heat = {
                    "size": [rows, columns],
                    "values": [round(float(x), 5) for x in grounding.evidence.point_map.flat],
                }
            return {**grounding.to_json(), "global_mask": encode_mask(grounding.mask), "heat": heat}
        threshold = settings.score_threshold if question.score_threshold is None else question.score_threshold
        return above(grounding, threshold, settings.mask_merge).to_json()


def _scenes(split: str) -> ShapesDataset:
    return ShapesDataset(split, "basic", (96, 96))


def _encoded(split: str, index: int) -> bytes:
    _, data = cv2.imencode(".png", cv2.cvtColor(_scenes(split)[index].image, cv2.COLOR_RGB2BGR))
    return data.tobytes()


def above(grounding: Grounding, threshold: float, merge: str) -> Grounding:
    """The objects above a score threshold, of a grounding with every query and with the global mask as its mask."""
    keep = grounding.scores > threshold
    masks = grounding.masks[keep]
    mask = grounding.mask if merge != "instance" else np.zeros_like(grounding.mask)
    if merge != "global":
        mask = mask | masks.any(axis=0)
    return dataclasses.replace(
        grounding,
        boxes_xyxy=grounding.boxes_xyxy[keep],
        scores=grounding.scores[keep],
        masks=masks,
        points_xy=grounding.points_xy[keep],
        mask=mask,
        exists=bool(keep.any()),
        score_threshold=threshold,
    )
