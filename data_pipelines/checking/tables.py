"""The tables of `data_pipelines.check`: counts per split next to published ones, and the number of faults of each kind."""

from collections.abc import Iterable, Sequence

from data_pipelines.checking.faults import KINDS, Fault, Rules, is_note
from data_pipelines.records import Record, by_split, most_objects, select
from instancevg_jax.errors import one_line

# Published numbers of pictures
PUBLISHED = {
    "refcoco": {
        "val_refcoco_unc": 1500,
        "testA_refcoco_unc": 750,
        "testB_refcoco_unc": 750,
        "val_refcocoplus_unc": 1500,
        "testA_refcocoplus_unc": 750,
        "testB_refcocoplus_unc": 750,
        "val_refcocog_umd": 1300,
        "test_refcocog_umd": 2600,
    },
    "grefcoco": {"train": 16994, "val": 1500, "testA": 750, "testB": 750},
    "refzom": {"train": 43749, "test": 11329},
}
SOURCES = {
    "refcoco": "catalog of TensorFlow Datasets, ref_coco, unc and umd partitions",
    "grefcoco": "RefCOCO's unc partition (catalog of TensorFlow Datasets, ref_coco), which gRefCOCO keeps",
    "refzom": "Hu et al., Beyond One-to-One (ICCV 2023)",
}


def counts_table(family: str, records: Sequence[Record], protocol: str) -> list[list[str]]:
    """Rows of: split, records, sentences, pictures, published pictures, objects none / one / many, most objects."""
    splits = by_split(records)
    published = _published(family, splits.keys())
    rows = [["split", "records", "sentences", "pictures", "published", "none", "one", "many", "most objects"]]
    for split, found in splits.items():
        objects = [len(select(record, protocol).objects) for record in found]
        numbers = [len(found), sum(len(r.expressions) for r in found), len({r.image_key for r in found})]
        numbers += [objects.count(0), objects.count(1), sum(n > 1 for n in objects), most_objects(found, protocol)]
        shown = [f"{n:,}" for n in numbers]
        expected = published.get(split)
        shown.insert(3, "-" if expected is None else f"{expected:,}" + ("" if expected == numbers[2] else " differs"))
        rows.append([split, *shown])
    return rows


def _published(family: str, splits: Iterable[str]) -> dict[str, int]:
    """Published pictures per split. The refer layout does not name its data set, so it is inferred from the splits."""
    published = PUBLISHED.get(family, {})
    if family != "refcoco":
        return published
    partition = "refcoco_unc" if {"testA", "testB"} & set(splits) else "refcocog_umd"  # RefCOCO+ has RefCOCO's numbers
    short = {name.removesuffix(f"_{partition}"): n for name, n in published.items() if name.endswith(f"_{partition}")}
    return published | (short if not {"test", "testA", "testB"}.isdisjoint(splits) else {})


def faults_table(faults: Sequence[Fault], rules: Rules) -> list[list[str]]:
    """Rows of: kind of fault, number found, whether it is a fault or a note, the first one."""
    unchecked = {
        "expression longer than max_tokens": "" if rules.tokenizer else "needs --tokenizer",
        "words unknown to the tokenizer": "" if rules.tokenizer else "needs --tokenizer",
        "no group": "" if rules.grouped else "only for family rrefcoco",
    }
    rows = [["fault", "found", "", "the first"]]
    for kind in KINDS:
        found = [fault for fault in faults if fault.kind == kind]
        first = f"{found[0].record or found[0].file}: {found[0].value}".strip(": ") if found else ""
        level = "" if not found else level_of(kind, rules)
        why = unchecked.get(kind, "")
        rows.append([kind, "-" if why else f"{len(found):,}", level, why or first])
    return rows


def level_of(kind: str, rules: Rules) -> str:
    """Whether a kind counts as a fault or is only noted."""
    return "note" if is_note(kind, rules) else "FAULT"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; the first row is the head."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
