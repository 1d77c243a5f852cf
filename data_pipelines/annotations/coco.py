"""COCO's layout, `images` and `annotations`, with sentences: a caption per annotation, which describes its object, a caption per
image, which describes all its annotations together (MDETR), or the names of `categories`.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from data_pipelines.annotations.source import AnnotationFile, Entry
from data_pipelines.annotations.values import by_id, identifier, instance, picture, present, shown, size, stated, text
from data_pipelines.annotations.values import field as field_of
from data_pipelines.records import Instance, Record
from instancevg_jax.errors import InputError


@dataclass
class _Sentence:
    """A sentence about a picture, and its annotations with their places in the file."""

    image: str
    text: str
    annotations: list[tuple[str, Entry]] = field(default_factory=list)


@dataclass
class _Doubts:
    """Annotations whose sentence is unknown. All sentences that they may belong to are unreadable."""

    by_image: dict[str, str] = field(default_factory=dict)  # image whose sentence is unknown -> place
    by_text: dict[str, str] = field(default_factory=dict)  # sentence whose image is unknown -> place
    anywhere: str = ""

    def add(self, image: str | None, sentence: str | None, where: str) -> None:
        if image is not None:
            self.by_image.setdefault(image, where)
        elif sentence is not None:
            self.by_text.setdefault(sentence, where)
        else:
            self.anywhere = self.anywhere or where

    def about(self, sentence: _Sentence) -> str:
        """The place of an unreadable annotation that may belong to this sentence, or ""."""
        return self.anywhere or self.by_image.get(sentence.image, "") or self.by_text.get(sentence.text, "")


def read(content: Entry, source: AnnotationFile) -> list[Record]:
    """One record per sentence of a picture; annotations of one picture with the same sentence are its objects.

    A sentence has no target if its only annotation has category_id -1, or has neither category, box nor segmentation.
    The split is the image's `split`, or else the ending of an MDETR file's name, or else "train". Raises InputError if there
    are no sentences, or no objects at all.
    """
    images = by_id(content["images"], "images", source)
    annotations = field_of(content, "annotations", list, "the file")
    owner = _owner_of_sentences(content, images, annotations, source)
    names = by_id(content.get("categories"), "categories", source) if owner == "categories" else {}
    sentences: dict[Hashable, _Sentence] = {}
    doubts = _Doubts()
    for position, annotation in enumerate(annotations):
        where = f"annotations[{position}]"
        image = found = None
        with source.at(where):
            if not isinstance(annotation, dict):
                raise InputError(f"{where} is {shown(annotation)}; expected an annotation")
            image = identifier(annotation.get("image_id"), f"{where}.image_id")
        if isinstance(annotation, dict):
            with source.at(where):
                found = _sentence_of(annotation, images.get(image or ""), owner, names, where)
        if found == [] and image is not None:
            continue
        stray = image is not None and image not in images
        with source.at(where):
            if stray:
                raise InputError(f"{where}.image_id is {image}; no readable image has this id")
        if image is not None and found and not stray:
            sentence = sentences.setdefault((image, found[0]), _Sentence(image, found[0]))
            sentence.annotations.append((where, annotation))
        elif not (stray and owner == "categories"):  # exports of some pictures often keep the annotations of the others
            doubts.add(None if stray else image, found[0] if found else None, where)
    if owner == "images":
        _add_images_alone(sentences, images)
    return _records(
        list(sentences.values()), images, doubts, _split_in_name(source) if owner == "images" else "train", source
    )


def _owner_of_sentences(
    content: Entry, images: dict[str, Entry], annotations: list[Any], source: AnnotationFile
) -> Literal["categories", "annotations", "images"]:
    """The part of the file that has the sentences. Raises InputError if none has."""
    if source.captions == "categories":
        return "categories"
    if any("caption" in annotation for annotation in annotations if isinstance(annotation, dict)):
        return "annotations"
    if any("caption" in image for image in images.values()):
        return "images"
    hint = ""
    if any(source.path.parent.glob("*refs*(*)*")):
        hint = "; this looks like the objects of the refer layout: name the file of its references, such as refs(unc).p"
    elif isinstance(content.get("categories"), list) and content["categories"]:
        hint = "; this looks like a detection export: --captions categories makes the categories' names its sentences"
    raise InputError(f"no annotation and no image has a caption; expected what the objects are called{hint}")


def _sentence_of(
    annotation: Entry, image: Entry | None, owner: str, names: dict[str, Entry], where: str
) -> list[str] | None:
    """An annotation's sentence: [] if it has none, None if that depends on an unknown image."""
    if owner == "categories":
        key = identifier(annotation.get("category_id"), f"{where}.category_id")
        if key not in names:
            raise InputError(f"{where}.category_id is {key}; no readable category has this id")
        return [text(names[key].get("name"), f"the name of category {key}")]
    entry, place = (annotation, where) if owner == "annotations" else (image, f"the image of {where}")
    if entry is None:
        return None
    return [text(entry["caption"], f"{place}.caption")] if "caption" in entry else []


def _add_images_alone(sentences: dict[Hashable, _Sentence], images: dict[str, Entry]) -> None:
    """Add MDETR's images without annotations, so that they are reported: even sentences without target have an annotation."""
    annotated = {sentence.image for sentence in sentences.values()}
    for image, entry in images.items():
        if isinstance(entry.get("caption"), str) and image not in annotated:
            sentences[image, entry["caption"]] = _Sentence(image, entry["caption"])


def _records(
    sentences: list[_Sentence], images: dict[str, Entry], doubts: _Doubts, split: str, source: AnnotationFile
) -> list[Record]:
    records, ids = [], set()
    for sentence in sentences:
        where = f"image {sentence.image}, {shown(sentence.text)}"
        with source.at(where):
            if doubt := doubts.about(sentence):
                raise InputError(f"{where}: {doubt}, which cannot be read, may be one of its objects")
            for place, annotation in sentence.annotations:
                name = annotation.get("id")
                if name is not None and identifier(name, f"{place}.id") in ids:
                    raise InputError(f"{place}.id is {shown(name)}, which another annotation has; expected it once")
                ids |= set() if name is None else {identifier(name, f"{place}.id")}
            records.append(_record(sentence, images[sentence.image], where, split, source))
    if records and not any(record.instances for record in records) and not source.problems.found:
        raise InputError(
            "no annotation with a caption has a bbox or a segmentation; expected the objects that are meant"
        )
    return records


def _record(sentence: _Sentence, image: Entry, where: str, split: str, source: AnnotationFile) -> Record:
    where_image = f"image {sentence.image}"
    width, height = size(image, where_image)
    name = picture(image.get("file_name"), f"{where_image}.file_name")
    instances = _objects(sentence, where, source)
    split = text(stated(image, "split", split), f"{where_image}.split")
    return Record(f"{sentence.image}/{sentence.text}", name, width, height, (sentence.text,), instances, split)


def _objects(sentence: _Sentence, where: str, source: AnnotationFile) -> tuple[Instance, ...]:
    found = sentence.annotations
    if not found:
        raise InputError(f"{where} has no annotation; expected one with category_id -1 where nothing is meant")
    phrases = {str(a.get("tokens_positive")) for _, a in found}
    if len(phrases) > 1:
        raise InputError(
            f"{where} has annotations of several phrases (tokens_positive); write them as ODVG, one region each"
        )
    if len(found) == 1 and _means_nothing(*found[0], source):
        return ()
    return tuple(present(instance(annotation, place, source), place) for place, annotation in found)


def _means_nothing(where: str, annotation: Entry, source: AnnotationFile) -> bool:
    found = instance(annotation, where, source)
    if found.box is not None or found.segmentation:
        return False
    if annotation.get("category_id") not in (None, -1):
        raise InputError(
            f"{where} has a category, but neither bbox nor segmentation; expected one of them, or category_id -1 where "
            "nothing is meant"
        )
    return True


def _split_in_name(source: AnnotationFile) -> str:
    """The split in a name such as finetune_grefcoco_testA.json; "train" if there is none."""
    found = re.search(r"_(train|val|testA|testB|test)\.json", source.path.name)
    return found[1] if found else "train"
