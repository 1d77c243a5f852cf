"""Small made-up annotations and pictures for the tests of the data pipelines."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

HEIGHT, WIDTH = 40, 60
POLYGON = [[10, 10, 30, 10, 30, 30, 10, 30]]


def picture(folder: Path, name: str, shade: int = 90) -> Path:
    """A smooth 60 x 40 JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rgb = np.stack([x * 4, y * 6, np.full_like(x, shade)], -1).astype(np.uint8)
    path = folder / name
    assert cv2.imwrite(str(path), rgb)
    return path


def annotation(x: float = 10, y: float = 10, **changes: Any) -> dict[str, Any]:
    """One of COCO's annotations: a square of 20 pixels."""
    polygon = [[x, y, x + 20, y, x + 20, y + 20, x, y + 20]]
    return {"id": 7, "bbox": [x, y, 20, 20], "segmentation": polygon, "category_id": 1} | changes


NULL = {"bbox": None, "segmentation": None, "category_id": None}


def generalized(image_id: int, text: Any, *annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A record as in grefs, ref-zom and rrefcoco."""
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "width": WIDTH,
        "height": HEIGHT,
        "expressions": {"raw": text},
        "annotations": list(annotations),
    } | changes
