"""The layout of the refer and grefer APIs: a list of references, and the objects in an instances.json beside it.

Source: refer.py of the refer API and grefer.py of gRefCOCO.
"""

from pathlib import Path
from typing import Any

from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.values import by_id, field, instance, load_json, number, picture, text
from data_pipelines.records import Instance, Record, is_training
from instancevg_jax.errors import InputError


def read(references: Any, folder: Path, problems: Problems) -> list[Record]:
    """References joined with `folder`/instances.json.

    In training a reference with one object (refer) keeps its sentences together; one with a list of objects (grefer), and
    every one outside training, gives a record a sentence: so do the original's files.
    """
    if not isinstance(references, list) or not any(isinstance(r, dict) and "sentences" in r for r in references):
        raise InputError("no known layout; expected a list of references with sentences, ann_id and split")
    path = folder / "instances.json"
    images, annotations = _instances(path, problems)
    records = []
    for position, reference in enumerate(references):
        where = f"reference {position}"
        with problems.at(where):
            if not isinstance(reference, dict):
                raise InputError(f"{where} is a {type(reference).__name__}; expected a reference with sentences")
            where = f"reference {reference.get('ref_id', position)}"
            image = images.get(reference.get("image_id"))
            if image is None:
                raise InputError(f"{where}: image_id {reference.get('image_id')} is not in {path}")
            records += _reference(reference, where, image, _targets(reference, where, annotations))
    return records


def _reference(reference: dict, where: str, image: dict, targets: tuple[Instance, ...]) -> list[Record]:
    split = text(reference.get("split"), f"{where}.split")
    name = picture(image.get("file_name"), f"the file_name of image {image.get('id')}")
    width, height = (int(number(image.get(key), f"{key} of {name}")) for key in ("width", "height"))
    sentences = field(reference, "sentences", list, where)
    if not sentences or not all(isinstance(s, dict) for s in sentences):
        raise InputError(f"{where}.sentences holds {len(sentences)}; expected at least one, each an object with raw")
    texts = [text(s.get("raw", s.get("sent")), f"{where}.sentences[{i}]") for i, s in enumerate(sentences)]
    ids = [s.get("sent_id", f"{where}[{i}]") for i, s in enumerate(sentences)]
    names = [text(f"{split}/sent{name}", f"{where}.sent_id") for name in ids]
    if is_training(split) and not isinstance(reference.get("ann_id"), list):
        return [Record(names[0], name, width, height, tuple(texts), targets, split)]
    return [Record(n, name, width, height, (t,), targets, split) for n, t in zip(names, texts, strict=True)]


def _targets(reference: dict, where: str, annotations: dict[Any, dict]) -> tuple[Instance, ...]:
    ids = reference.get("ann_id")
    ids = ids if isinstance(ids, list) else [ids]
    if reference.get("no_target") or ids == [-1]:
        return (Instance(None, None),)
    missing = [i for i in ids if i not in annotations]
    if missing:
        raise InputError(f"{where}: ann_id {missing[0]} is not in instances.json")
    return tuple(instance(annotations[i], f"annotation {i}") for i in ids)


def _instances(path: Path, problems: Problems) -> tuple[dict[Any, dict], dict[Any, dict]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; the refer layout has it beside its references")
    content = load_json(path, str(path))
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise InputError(f"{path}: expected COCO's images and annotations")
    images, annotations = (by_id(content[key], f"{path}: {key}", problems) for key in ("images", "annotations"))
    return images, annotations
