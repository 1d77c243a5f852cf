"""The layout of the refer and grefer APIs: a list of references, and the objects in an instances.json in the same folder.

Source: refer.py of the refer API and grefer.py of gRefCOCO.
"""

from typing import Any

from data_pipelines.annotations.source import AnnotationFile, Entry
from data_pipelines.annotations.values import by_id, field, identifier, instance, picture, present, shown, size, text
from data_pipelines.records import Instance, Record, is_training
from instancevg_jax.errors import InputError

INSTANCES = "instances.json"


def is_entry(entry: Any) -> bool:
    """Whether an item of a list looks like a reference."""
    return isinstance(entry, dict) and "sentences" in entry


def read(references: list[Any], source: AnnotationFile) -> list[Record]:
    """References joined with the objects of instances.json.

    In training, a reference with one object (refer) keeps its sentences together; one with a list of objects (grefer), and
    every reference outside training, gives one record per sentence, as in the original's files.
    """
    images, annotations = _instances(source)
    records: list[Record] = []
    for position, reference in enumerate(references):
        where = f"reference {position}"
        with source.at(where):
            if not isinstance(reference, dict):
                raise InputError(f"{where} is {shown(reference)}; expected a reference with sentences")
            if reference.get("ref_id") is not None:
                where = f"reference {identifier(reference['ref_id'], f'{where}.ref_id')}"
            image = identifier(reference.get("image_id"), f"{where}.image_id")
            if image not in images:
                raise InputError(f"{where}: image_id {image} is not in {INSTANCES}, or not readable there")
            records += _reference(reference, where, images[image], _targets(reference, where, annotations, source))
    return records


def _reference(reference: Entry, where: str, image: Entry, targets: tuple[Instance, ...]) -> list[Record]:
    split = text(reference.get("split"), f"{where}.split")
    name = picture(image.get("file_name"), f"the file_name of image {image['id']}")
    width, height = size(image, f"image {image['id']}")
    sentences = field(reference, "sentences", list, where)
    if not sentences or not all(isinstance(s, dict) for s in sentences):
        raise InputError(f"{where}.sentences holds {len(sentences)}; expected at least one, each an object with raw")
    texts = [text(s.get("raw", s.get("sent")), f"{where}.sentences[{i}]") for i, s in enumerate(sentences)]
    ids = [s.get("sent_id", f"{where}[{i}]") for i, s in enumerate(sentences)]
    names = [f"{split}/sent{identifier(name, f'{where}.sent_id')}" for name in ids]
    if is_training(split) and not isinstance(reference.get("ann_id"), list):
        return [Record(names[0], name, width, height, tuple(texts), targets, split)]
    return [Record(n, name, width, height, (t,), targets, split) for n, t in zip(names, texts, strict=True)]


def _targets(
    reference: Entry, where: str, annotations: dict[str, Entry], source: AnnotationFile
) -> tuple[Instance, ...]:
    """The objects of a reference; one that is null where nothing is meant."""
    stated = reference.get("ann_id")
    ids = [identifier(i, f"{where}.ann_id") for i in (stated if isinstance(stated, list) else [stated])]
    if not ids and reference.get("no_target") is False:
        raise InputError(f"{where}.ann_id is [], and no_target is false; expected the ids of objects")
    if reference.get("no_target") or ids == ["-1"]:
        if set(ids) - {"-1"}:
            raise InputError(f"{where} has no_target and the objects {shown(stated)}; expected ann_id -1")
        return (Instance(None, None),)
    missing = [i for i in ids if i not in annotations]
    if missing:
        raise InputError(f"{where}: ann_id {missing[0]} is not in {INSTANCES}, or not readable there")
    return tuple(present(instance(annotations[i], f"annotation {i}", source), f"annotation {i}") for i in ids)


def _instances(source: AnnotationFile) -> tuple[dict[str, Entry], dict[str, Entry]]:
    path = source.path.with_name(INSTANCES)
    if not path.is_file():
        raise InputError(f"{path}: no such file; the refer layout has it in the folder of its references")
    content = source.load_json(INSTANCES)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: expected COCO's images and annotations")
    images, annotations = (by_id(content[key], f"{path}: {key}", source) for key in ("images", "annotations"))
    return images, annotations
