"""Mends what data_pipelines.check finds, where it can be mended without guessing, and counts what it did."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data_pipelines import masks
from data_pipelines.checking.faults import Picture, box_is_empty, drawing, is_far, polygon_is_empty, shared_pictures
from data_pipelines.records import RLE, Instance, Protocol, Record, is_partial, is_training
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression


def fix(
    records: Sequence[Record], pictures: dict[str, Picture], protocol: Protocol
) -> tuple[list[Record], Counter[str]]:
    """Cleaned records, and how often what was done. What is done stands in `faults.KINDS`."""
    done: Counter[str] = Counter()
    shared = shared_pictures(records)
    fixed = []
    for record in records:
        if is_training(record.split) and record.image_key in shared:
            done["training records dropped: their picture is in another split"] += 1
            continue
        mended = _record(record, pictures[record.picture].size, done)
        if mended and protocol == "official" and is_partial(mended):
            done["records dropped: an object has no mask; --protocol strict keeps it"] += 1
        elif mended:
            fixed.append(mended)
    return _unique_ids(fixed, done), done


def _record(record: Record, size: tuple[int, int] | None, done: Counter[str]) -> Record | None:
    if size is None:
        done["records dropped: their picture is missing or corrupt"] += 1
        return None
    expressions = tuple(e for e in record.expressions if _has_words(e))
    done["empty expressions dropped"] += len(record.expressions) - len(expressions)
    if not expressions:
        done["records dropped: no expression is left"] += 1
        return None
    if (record.height, record.width) not in (size, (0, 0)):
        if any(isinstance(i.segmentation, RLE) for i in record.instances):
            done["records dropped: their masks are of another size than the picture"] += 1
            return None
        done["sizes replaced by the picture's"] += 1
    instances = [_instance(i, *size, done) for i in record.instances if i.box is not None or i.segmentation is not None]
    kept = tuple(i for i in instances if i)
    if instances and not kept:
        done["records dropped: no object is left of them"] += 1
        return None
    null = len(record.instances) - len(instances)
    if kept:
        done["nulls among objects dropped"] += null
    return replace(record, height=size[0], width=size[1], expressions=expressions, instances=kept)


def _instance(instance: Instance, height: int, width: int, done: Counter[str]) -> Instance | None:
    segmentation, box = instance.segmentation, instance.box
    if isinstance(segmentation, list):
        whole = [polygon for polygon in segmentation if not polygon_is_empty(polygon)]
        done["empty polygons dropped"] += len(segmentation) - len(whole)
        done["odd coordinates dropped"] += sum(len(polygon) % 2 for polygon in whole)
        segmentation = [polygon[: len(polygon) // 2 * 2] for polygon in whole] or None
    mask, problem = drawing(replace(instance, segmentation=segmentation), height, width)
    if problem:
        done["masks dropped: they cannot be drawn"] += 1
        mask = segmentation = None
    if box is not None:
        clipped = (
            min(max(box[0], 0), width),
            min(max(box[1], 0), height),
            min(max(box[2], 0), width),
            min(max(box[3], 0), height),
        )
        done["boxes clipped to the picture"] += clipped != box
        box = None if box_is_empty(clipped) else clipped
    if mask and (box is None or is_far(box, mask)):
        done["boxes drawn around their mask"] += 1
        box = masks.bounds(mask)
    if box is None:
        done["objects dropped: neither box nor mask is left"] += 1
        return None
    return Instance(box, segmentation, instance.id)


def _unique_ids(records: list[Record], done: Counter[str]) -> list[Record]:
    taken: set[tuple[str, str]] = set()
    unique = []
    for record in records:
        name, k = record.id, 1
        while (record.split, name) in taken:
            k += 1
            name = f"{record.id}#{k}"
        done["duplicate ids changed"] += name != record.id
        taken.add((record.split, name))
        unique.append(replace(record, id=name))
    return unique


def _has_words(expression: str) -> bool:
    try:
        clean_expression(expression)
    except InputError:
        return False
    return True
