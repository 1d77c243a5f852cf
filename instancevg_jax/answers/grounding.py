"""The answer for one picture and sentence: arrays, with methods that draw, export and save them."""

import base64
import html
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageShow
from pycocotools import mask as coco_masks

from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import Picture, load_picture


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the network attended to, and all of its queries: Q of them, in the network's order, counted or not.

    `answers.explain` draws it. Boxes and points are in the picture's own pixels; maps and masks have the network's size.
    """

    point_map: np.ndarray  # [h, w] float32, pooled attention that the points were chosen on
    attention: np.ndarray  # [Q, h, w] float32, attention of each query's token
    tokens: tuple[str, ...]  # [Q], the token each query starts from; "" where it has none of its own
    points_xy: np.ndarray  # [Q, 2] float32
    boxes_xyxy: np.ndarray  # [Q, 4] float32
    scores: np.ndarray  # [Q] float32 in [0, 1]
    masks: np.ndarray  # [Q, H, W] bool, at the network's picture size
    counted: np.ndarray  # [Q] bool


@dataclass(frozen=True, eq=False, repr=False)
class Grounding:
    """The objects that a sentence refers to in a picture: N of them, best first, in the picture's own pixels. N may be 0.

    `len(grounding)` is N. All arrays are numpy and keep their number of dimensions where N is 0.
    """

    boxes_xyxy: np.ndarray  # [N, 4] float32
    scores: np.ndarray  # [N] float32 in [0, 1]
    masks: np.ndarray  # [N, H, W] bool
    points_xy: np.ndarray  # [N, 2] float32, centre of the patch that each object's query started from
    mask: np.ndarray  # [H, W] bool, merged mask of everything that is meant
    exists: bool  # the sentence refers to something: N > 0
    no_target_probability: float
    best_score: float = 0.0  # the highest of all queries, counted or not
    score_threshold: float | None = None  # a query counts above it
    expression: str = ""
    picture: np.ndarray | None = None  # [H, W, 3] uint8 RGB, if the answer was made by a Predictor
    notes: tuple[str, ...] = ()  # remarks on this answer, such as words that the model never saw
    evidence: Evidence | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __bool__(self) -> bool:
        return self.exists

    def __repr__(self) -> str:
        height, width = self.mask.shape
        scores = ", ".join(f"{score:.2f}" for score in self.scores[:5]) + (", ..." if len(self) > 5 else "")
        found = f"{self.verdict}, scores {scores}" if self.exists else self.verdict
        return f"Grounding({self.expression!r}: {found}; picture {width} x {height})"

    @property
    def says_no_target(self) -> bool:
        """Nothing was found because the sentence probably refers to nothing, and not only because all scores are low."""
        return not self.exists and self.no_target_probability > 0.5

    @property
    def verdict(self) -> str:
        """The answer in words: the number of objects, that there is no target, or that no query passed the threshold."""
        if self.exists:
            return f"{len(self)} object{'' if len(self) == 1 else 's'}"
        if self.says_no_target:
            return f"no target (p = {self.no_target_probability:.2f})"
        threshold = "" if self.score_threshold is None else f" {self.score_threshold:g}"
        return f"nothing above the score threshold{threshold} (best {self.best_score:.2f})"

    def draw(self, picture: Picture | None = None) -> Image.Image:
        """The answer drawn on its picture. Raises InputError where no picture is given and the grounding keeps none."""
        from instancevg_jax.answers.draw import draw_grounding

        drawn = draw_grounding(self._picture(picture), self, self.expression, notes=self.notes)
        return Image.fromarray(drawn)

    def explain(self, picture: Picture | None = None) -> Image.Image:
        """Where the network looked, and all of its queries. Raises InputError where `evidence` is None, or as `draw` does."""
        from instancevg_jax.answers.explain import draw_explanation

        return Image.fromarray(draw_explanation(self._picture(picture), self, self.expression))

    def show(self) -> None:
        """Show the drawing in the notebook, or else in the system's picture viewer. Raises InputError where there is none."""
        drawing = self.draw()
        if "ipykernel" in sys.modules:  # Pillow would prefer a viewer outside of the notebook
            sys.modules["IPython.display"].display(drawing)
        elif not ImageShow.show(drawing):
            raise InputError("no picture viewer was found; save the drawing: grounding.draw().save('answer.png')")

    def to_json(self) -> dict[str, Any]:
        """The answer as values that `json.dumps` takes. Masks are COCO run lengths: {"size": [H, W], "counts": text}."""
        objects = zip(self.boxes_xyxy, self.scores, self.points_xy, self.masks, strict=True)
        return {
            "expression": self.expression,
            "height": self.mask.shape[0],
            "width": self.mask.shape[1],
            "verdict": self.verdict,
            "exists": self.exists,
            "no_target_probability": self.no_target_probability,
            "objects": [
                {"box_xyxy": box.tolist(), "score": float(score), "point_xy": point.tolist(), "mask": encode_mask(mask)}
                for box, score, point, mask in objects
            ],
            "mask": encode_mask(self.mask),
            "notes": list(self.notes),
        }

    def to_coco(self, image_id: int | str = 0, category_id: int = 1) -> list[dict[str, Any]]:
        """COCO results, one entry per object, best first, with bbox as (x, y, width, height) in pixels."""
        objects = zip(self.boxes_xyxy.tolist(), self.scores.tolist(), self.masks, strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
                "segmentation": encode_mask(mask),
            }
            for (x1, y1, x2, y2), score, mask in objects
        ]

    def to_supervision(self) -> Any:
        """`supervision.Detections` with boxes, masks, scores and the sentence as class name, for its annotators and trackers.

        Raises InputError where the package supervision is not installed.
        """
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InputError(
                "the package supervision is not installed; run: pip install 'instancevg_jax[supervision]'"
            ) from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy,
            mask=self.masks,
            confidence=self.scores,
            class_id=np.zeros(len(self), int),
            data={"class_name": np.full(len(self), self.expression)},
        )

    def save_masks(self, directory: str | Path) -> list[Path]:
        """Write the merged mask to DIRECTORY/mask.png and each object's to object-1.png, object-2.png, ..., best first.

        Masks are 8-bit PNG files of the picture's size, 255 inside. An empty answer writes an empty merged mask. Returns
        the paths. Raises InputError where a file cannot be written.
        """
        from instancevg_jax.answers.draw import write_picture

        masks = [("mask.png", self.mask)]
        masks += [(f"object-{number}.png", mask) for number, mask in enumerate(self.masks, 1)]
        for file, mask in masks:
            write_picture(Path(directory) / file, mask.astype(np.uint8) * 255)
        return [Path(directory) / file for file, _ in masks]

    def _picture(self, picture: Picture | None) -> np.ndarray:
        if picture is None:
            if self.picture is None:
                raise InputError("this grounding keeps no picture; pass the picture that it was asked about")
            return self.picture
        rgb = load_picture(picture)
        if rgb.shape[:2] != self.mask.shape:
            height, width = self.mask.shape
            raise InputError(
                f"the picture is {rgb.shape[1]} x {rgb.shape[0]} pixels; expected the {width} x {height} of the answer"
            )
        return rgb

    def _repr_png_(self) -> bytes | None:
        if self.picture is None:
            return None
        data = io.BytesIO()
        self.draw().save(data, "PNG")
        return data.getvalue()

    def _repr_html_(self) -> str:
        png = self._repr_png_()
        shown = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="">' if png else ""
        rows = "".join(map(_html_row, zip(self.scores, self.boxes_xyxy, strict=True)))
        table = (
            f"<table><tr><th>score</th><th>x1</th><th>y1</th><th>x2</th><th>y2</th></tr>{rows}</table>" if rows else ""
        )
        return f"<div>{shown}<p>{html.escape(self.expression)}: {html.escape(self.verdict)}</p>{table}</div>"


def _html_row(found: tuple[float, Sequence[float]]) -> str:
    score, box = found
    return "<tr>" + "".join(f"<td>{text}</td>" for text in (f"{score:.3f}", *(f"{x:.1f}" for x in box))) + "</tr>"


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask in COCO's compressed run-length encoding, {"size": [H, W], "counts": text}."""
    encoded = cast(Any, coco_masks.encode(np.asfortranarray(mask, np.uint8)))  # its stub says that counts is text
    return {"size": list(mask.shape), "counts": str(encoded["counts"], "ascii")}
