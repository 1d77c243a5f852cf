"""Annotations drawn on their pictures, to look at before training."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from data_pipelines import masks
from data_pipelines.checking.geometry import drawing
from data_pipelines.checking.pictures import PictureInfo
from data_pipelines.records import Instance, Record
from instancevg_jax.inputs.pictures import load_picture

_COLOURS = ((230, 60, 60), (50, 110, 230), (40, 160, 80), (240, 160, 20), (150, 70, 200), (0, 170, 190))  # RGB
_LARGEST = 1280  # pixels of the longer side of a drawing
_LINE = 90  # characters of a caption's line


def draw(
    records: Sequence[Record], pictures: dict[str, PictureInfo], images: Path, folder: Path, split: str, num: int
) -> int:
    """Write the first `num` records of `split` ("": of all splits) as JPEGs into `folder`; returns how many were drawn.

    Coordinates are drawn as the file states them, on the picture as viewers show it. Records without a readable picture are
    left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [r for r in records if split in ("", r.split) and pictures[r.picture].size][:num]
    for number, record in enumerate(tqdm(chosen, desc="drawing", unit=" records")):
        name = re.sub(r"[^\w.-]+", "_", record.id)[-80:]
        _draw(record, images / record.picture).save(folder / f"{number:05d}-{name}.jpg", quality=90)
    return len(chosen)


def _draw(record: Record, path: Path) -> Image.Image:
    pixels = load_picture(path).copy()  # which may be read-only
    lines = []
    for number, instance in enumerate(record.instances):
        mask, problem = drawing(instance, *pixels.shape[:2])
        if mask and not problem:
            inside = masks.decode(mask).astype(bool)
            pixels[inside] = (0.6 * pixels[inside] + 0.4 * np.array(_COLOURS[number % len(_COLOURS)])).astype(np.uint8)
        if problem:
            lines.append(f"mask {number + 1}: {problem}")
    picture = Image.fromarray(pixels)
    scale = min(1.0, _LARGEST / max(picture.size))
    if scale < 1:
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    for number, instance in enumerate(record.instances):
        _draw_box(ImageDraw.Draw(picture), instance, scale, _COLOURS[number % len(_COLOURS)])
    meant = len([i for i in record.instances if i.box or i.segmentation])
    head = f"{record.split}  {record.id}  {record.picture}  {meant} object{'' if meant == 1 else 's'}"
    return _captioned(picture, [head, *record.expressions, *lines])


def _draw_box(canvas: ImageDraw.ImageDraw, instance: Instance, scale: float, colour: tuple[int, int, int]) -> None:
    if instance.box is not None:
        x1, y1, x2, y2 = (v * scale for v in instance.box)
        canvas.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), outline=colour, width=2)


def _captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture below lines of text."""
    wrapped = [line[i : i + _LINE] for line in lines for i in range(0, max(len(line), 1), _LINE)]
    font = ImageFont.load_default(14)
    text = "\n".join(wrapped)
    box = ImageDraw.Draw(picture).multiline_textbbox((6, 4), text, font=font)
    band = int(box[3]) + 6
    canvas = Image.new("RGB", (max(picture.width, int(box[2]) + 6), picture.height + band), "white")
    ImageDraw.Draw(canvas).multiline_text((6, 4), text, fill="black", font=font)
    canvas.paste(picture, (0, band))
    return canvas
