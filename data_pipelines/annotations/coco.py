"""COCO-style JSON whose annotations carry a `caption`: what the object is called."""

from typing import Any

from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.values import by_id, field, instance, number, picture, text
from data_pipelines.records import Instance, Record
from instancevg_jax.errors import InputError


def read(content: dict[str, Any], problems: Problems) -> list[Record]:
    """One record for each caption of a picture; annotations of one picture with the same caption are its objects.

    An annotation with a caption and neither box nor segmentation says that nothing is meant. The split is the image's
    `split`, or "train". Raises InputError where no annotation has a caption, none of those an object, or an image is unknown.
    """
    images = by_id(content["images"], "images", problems)
    together: dict[tuple[Any, str], list[Instance]] = {}
    ids: set[Any] = set()
    for position, annotation in enumerate(field(content, "annotations", list, "the file")):
        where = f"annotations[{position}]"
        with problems.at(where):
            if not isinstance(annotation, dict):
                raise InputError(f"{where} is {annotation!r}; expected an annotation")
            if "caption" not in annotation:
                continue
            if "id" in annotation and annotation["id"] in ids:
                raise InputError(f"{where}.id is {annotation['id']!r}, which another annotation has; expected it once")
            ids.add(annotation.get("id"))
            if annotation.get("image_id") not in images:
                raise InputError(f"{where}.image_id is {annotation.get('image_id')!r}; no image has this id")
            key = (annotation["image_id"], text(annotation["caption"], f"{where}.caption"))
            together.setdefault(key, []).append(instance(annotation, where))
    if not together and not problems.found:
        raise InputError("no annotation has a caption; expected some with what the object is called")
    if together and not any(i.box or i.segmentation for found in together.values() for i in found):
        raise InputError(
            "no annotation with a caption has a bbox or a segmentation; expected the objects that are meant"
        )
    records = []
    for (image, caption), found in together.items():
        with problems.at(f"image {image}"):
            records.append(_record(images[image], caption, tuple(found)))
    return records


def _record(image: dict[str, Any], caption: str, instances: tuple[Instance, ...]) -> Record:
    where = f"image {image['id']}"
    width, height = (int(number(image.get(key), f"{where}.{key}")) for key in ("width", "height"))
    name = picture(image.get("file_name"), f"{where}.file_name")
    split = text(image.get("split", "train"), f"{where}.split")
    return Record(f"{image['id']}/{caption}", name, width, height, (caption,), instances, split)
