"""COCO-style JSON whose annotations carry a `caption`: what the object is called."""

from typing import Any

from data_pipelines.fields import field, instance, number, text
from data_pipelines.records import Instance, Record
from instancevg_jax.errors import InputError


def read(content: dict[str, Any]) -> list[Record]:
    """One record for each caption of a picture; annotations of one picture with the same caption are its objects.

    An annotation with a caption and neither box nor segmentation says that nothing is meant. The split is the image's
    `split`, or "train". Raises InputError where no annotation has a caption or an image is unknown.
    """
    images = {image["id"]: image for image in field(content, "images", list, "the file")}
    together: dict[tuple[Any, str], list[Instance]] = {}
    for position, annotation in enumerate(field(content, "annotations", list, "the file")):
        where = f"annotations[{position}]"
        if "caption" not in annotation:
            continue
        if annotation.get("image_id") not in images:
            raise InputError(f"{where}.image_id is {annotation.get('image_id')!r}; no image has this id")
        key = (annotation["image_id"], text(annotation["caption"], f"{where}.caption"))
        together.setdefault(key, []).append(instance(annotation, where))
    if not together:
        raise InputError("no annotation has a caption; expected some with what the object is called")
    return [_record(images[image], caption, tuple(found)) for (image, caption), found in together.items()]


def _record(image: dict[str, Any], caption: str, instances: tuple[Instance, ...]) -> Record:
    where = f"image {image['id']}"
    width, height = (int(number(image.get(key), f"{where}.{key}")) for key in ("width", "height"))
    picture = text(image.get("file_name"), f"{where}.file_name")
    return Record(
        f"{image['id']}/{caption}", picture, width, height, (caption,), instances, str(image.get("split", "train"))
    )
