"""Look for everything that is wrong with annotations and pictures, before hours of training do.

    python -m data_pipelines.check grefcoco --annotations grefs/instance.json --images train2014 [--fix cleaned.jsonl]

Exit status 0 where nothing is wrong, 1 where something is, 2 for files that cannot be read at all.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.annotations import jsonl, reading
from data_pipelines.annotations.problems import Problems
from data_pipelines.checking.faults import KINDS, Fault, Rules, find, is_note, look_at_pictures
from data_pipelines.checking.fixes import fix
from data_pipelines.command_line import at_least_one
from data_pipelines.prepared.builders import FAMILIES
from data_pipelines.records import Protocol, Record, by_split, most_objects, select
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.inputs.tokenizer import Tokenizer

# How many pictures a split has, as published; no source of its numbers of sentences is at hand.
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
MAX_TOKENS = {"refcoco": 20}  # of the original's configs; 50 for the others


def counts_table(family: str, records: Sequence[Record], protocol: Protocol) -> list[list[str]]:
    """Rows of: split, records, expressions, pictures, published pictures, objects none / one / many, most objects."""
    splits = by_split(records)
    published = _published(family, splits.keys())
    rows = [["split", "records", "sentences", "pictures", "published", "none", "one", "many", "most objects"]]
    for split, found in splits.items():
        objects = [len(select(record, protocol).objects) for record in found]
        numbers = [len(found), sum(len(r.expressions) for r in found), len({r.image_key for r in found})]
        numbers += [objects.count(0), objects.count(1), sum(n > 1 for n in objects), most_objects(found, protocol)]
        shown = [f"{n:,}" for n in numbers]
        stated = published.get(split)
        shown.insert(3, "-" if stated is None else f"{stated:,}" + ("" if stated == numbers[2] else " differs"))
        rows.append([split, *shown])
    return rows


def _published(family: str, splits: Iterable[str]) -> dict[str, int]:
    """Published pictures by split; those of the refer layout, which does not name its data set, are told by each other."""
    published = PUBLISHED.get(family, {})
    if family != "refcoco":
        return published
    partition = "refcoco_unc" if {"testA", "testB"} & set(splits) else "refcocog_umd"  # RefCOCO+ has RefCOCO's numbers
    short = {name.removesuffix(f"_{partition}"): n for name, n in published.items() if name.endswith(f"_{partition}")}
    return published | (short if not {"test", "testA", "testB"}.isdisjoint(splits) else {})


def faults_table(faults: Sequence[Fault], rules: Rules) -> list[list[str]]:
    """Rows of: fault, how often, the first one."""
    unchecked = {
        "expression longer than max_tokens": "" if rules.tokenizer else "needs --tokenizer",
        "no group": "" if rules.grouped else "of family rrefcoco alone",
    }
    rows = [["looked for", "found", "", "the first"]]
    for kind in KINDS:
        found = [fault for fault in faults if fault.kind == kind]
        first = f"{found[0].where}: {found[0].detail}".rstrip(": ") if found else ""
        level = "" if not found else "note" if is_note(kind, rules.protocol) else "FAULT"
        why = unchecked.get(kind, "")
        rows.append([kind, "-" if why else f"{len(found):,}", level, why or first])
    return rows


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def check(
    records: Sequence[Record],
    images: Path,
    rules: Rules,
    fix_to: Path | None,
    workers: int,
    unreadable: Sequence[Fault] = (),
) -> list[Fault]:
    """All faults, `unreadable` first; with `fix_to`, the cleaned records are written there and what was changed is printed."""
    names = list(dict.fromkeys(record.picture for record in records))
    print(f"looking at {len(names):,} pictures of {images}", file=sys.stderr)
    pictures = look_at_pictures(names, images, workers)
    faults = [*unreadable, *find(records, pictures, rules)]
    if fix_to:
        fixed, done = fix(records, pictures, rules.protocol)
        done["records dropped: they cannot be read"] = len(unreadable)
        jsonl.write(fix_to, fixed)
        print(f"{fix_to}: {len(fixed):,} of {len(records) + len(unreadable):,} records")
        for what, count in done.items():
            if count:
                print(f"  {count:,} {what}")
    return faults


def read(paths: Sequence[Path]) -> tuple[list[Record], list[Fault]]:
    """The records of all files, and those that cannot be read."""
    records, faults = [], []
    for path in paths:
        problems = Problems(keep=True)
        records += reading.read(path, problems)
        faults += [Fault("unreadable record", where, what) for where, what in problems.found]
    return records, faults


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m data_pipelines.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, metavar="F", help="any layout of docs/data.md"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of the pictures")
    parser.add_argument("--tokenizer", type=Path, metavar="F", help="sentencepiece model, to count tokens with")
    parser.add_argument("--max-tokens", type=int, help="20 for refcoco, else 50")
    parser.add_argument("--max-targets", type=int, default=10, help="the config's data.max_targets; 10 unless given")
    parser.add_argument(
        "--protocol",
        choices=("official", "strict"),
        default="official",
        help="the config's eval.protocol; official unless given",
    )
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a cleaned copy, as .jsonl")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures")
    args = parser.parse_args()
    if not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder; expected the pictures")
    if args.fix and args.fix.suffix != ".jsonl":
        raise InputError(f"--fix {args.fix}: the cleaned copy is JSON lines; give it the suffix .jsonl")
    max_tokens = MAX_TOKENS.get(args.family, 50) if args.max_tokens is None else args.max_tokens
    rules = Rules(
        Tokenizer.from_file(args.tokenizer) if args.tokenizer else None,
        at_least_one(max_tokens, "--max-tokens"),
        at_least_one(args.max_targets, "--max-targets"),
        args.protocol,
        grouped=args.family == "rrefcoco",
    )
    workers = at_least_one(args.workers, "--workers")
    records, unreadable = read(args.annotations)
    faults = check(records, args.images, rules, args.fix, workers, unreadable)
    print(format_table(counts_table(args.family, records, rules.protocol)))
    print(f"published: pictures; source: {SOURCES.get(args.family, 'none known')}")
    print(f"objects: under protocol {rules.protocol}\n")
    print(format_table(faults_table(faults, rules)))
    sys.exit(1 if any(not is_note(fault.kind, rules.protocol) for fault in faults) else 0)


if __name__ == "__main__":
    run_command(main)
