"""Records of several annotation files as one data set."""

import re
from dataclasses import replace
from pathlib import Path

from data_pipelines.records import Record, by_split, is_training
from instancevg_jax.errors import InputError

MERGES = {
    "refcoco": "rename splits as in the original's mixture of RefCOCO, RefCOCO+ and RefCOCOg: val_refcoco_unc etc.",
    "join": "join splits of the same name",
}


def merge(files: list[tuple[Path, list[Record]]], how: str = "") -> list[Record]:
    """The records of all files. Training splits of the same name are always joined.

    "refcoco" names every other split after its data set (val: val_refcoco_unc, val_refcocoplus_unc, val_refcocog_umd) and
    prefixes ids with it. Source: tools/data_process/merge_mask_dataset.py of C3VG, which made the original's file.

    Raises InputError for another split that several files have, unless `how` is "join", and where the data set
    of a file is unknown with "refcoco".
    """
    if how not in ("", *MERGES):
        raise InputError(f"--merge is {how!r}; expected one of {', '.join(MERGES)}")
    if how == "refcoco":
        files = [(path, _renamed(path, records)) for path, records in files]
    elif len(files) > 1:
        files = [(path, _own_groups(i, records)) for i, (path, records) in enumerate(files)]
    owners: dict[str, Path] = {}
    for path, records in files:
        for split in by_split(records):
            other = owners.setdefault(split, path)
            if other is not path and how != "join" and not is_training(split):
                raise InputError(
                    f"{other} and {path} both have a split {split!r}; expected --merge refcoco, which names the splits of "
                    "RefCOCO, RefCOCO+ and RefCOCOg after their data sets, or --merge join, which joins them"
                )
    return [record for _, records in files for record in records]


def data_set_of(path: Path) -> str:
    """The data set of an annotation file, such as "refcocog_umd", by the folder and name that refer and SimVG give it.

    refcoco+/refs(unc).p and refcocoplus-unc/instances.json are both refcocoplus_unc. Raises InputError for another place.
    """
    name = path.absolute().parent.name.lower().replace("+", "plus").replace("-", "_").replace("coco_plus", "cocoplus")
    partition = re.match(r"refs\((\w+)\)\.", path.name)
    if partition and not name.endswith(f"_{partition[1]}"):
        name = f"{name}_{partition[1]}"
    if not re.fullmatch(r"refcoco(plus|g)?_(unc|umd|google)", name):
        raise InputError(
            f"{path}: --merge refcoco cannot tell which data set this is; expected it in a folder refcoco, refcoco+ or refcocog "
            "as refs(unc).p, refs(umd).p or refs(google).p, or in refcoco-unc, refcocoplus-unc, refcocog-umd or refcocog-google"
        )
    return name


def _renamed(path: Path, records: list[Record]) -> list[Record]:
    name = data_set_of(path)
    return [
        replace(
            record,
            id=f"{name}/{record.id}",
            split=record.split if is_training(record.split) else f"{record.split}_{name}",
            group=f"{name}/{record.group}" if record.group else "",
        )
        for record in records
    ]


def _own_groups(file: int, records: list[Record]) -> list[Record]:
    """Prefix groups with the number of their file, so that groups of different files stay apart."""
    return [replace(r, group=f"{file}/{r.group}") if r.group else r for r in records]
