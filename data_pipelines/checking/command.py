"""The work of `data_pipelines.check` after its command line is parsed."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipelines.annotations import jsonl
from data_pipelines.annotations.problems import Problems
from data_pipelines.annotations.reading import read_files
from data_pipelines.checking.draw import draw
from data_pipelines.checking.faults import KINDS, Fault, Rules, find, is_note
from data_pipelines.checking.fixes import Dropped, Repair, fix
from data_pipelines.checking.pictures import PictureInfo, look_at_pictures
from data_pipelines.checking.tables import SOURCES, counts_table, faults_table, format_table, level_of
from data_pipelines.command_line import at_least_one
from data_pipelines.records import Record, by_split, default_protocol
from instancevg_jax.errors import InputError, one_line
from instancevg_jax.files import check_writable, write_atomically
from instancevg_jax.inputs.tokenizer import Tokenizer

_SHOWN = 5  # names that are printed per reason; --list has all


def run(args: argparse.Namespace) -> int:
    """Check the data named on the command line and print the result; returns the exit status, 0 or 1."""
    rules, workers = _rules(args), at_least_one(args.workers, "--workers")
    _check_outputs(args)
    problems = Problems(keep=True)
    records = read_files(args.annotations, problems, images=args.images, captions=args.captions, merge=args.merge)
    pictures, faults = examine(records, problems, args.images, rules, workers)
    print(format_table(counts_table(args.family, records, rules.protocol)))
    print(f"published: pictures; source: {SOURCES.get(args.family, 'none known')}")
    print(f"objects: under protocol {rules.protocol}\n")
    print(format_table(faults_table(faults, rules)))
    if args.fix or args.list:
        repair = fix(records, pictures, rules)
        repair.dropped[:0] = [Dropped(where, "", "it cannot be read") for where, _ in problems.found]
        if args.list:
            write_atomically(args.list, "".join(_listed(faults, repair, rules)).encode())
            print(f"\n{args.list}: {len(faults):,} faults and notes")
        if args.fix:
            jsonl.write(args.fix, repair.records)
            _print_repair(args.fix, records, repair)
    if args.draw:
        drawn = draw(records, pictures, args.images, args.draw, args.split, at_least_one(args.num, "--num"))
        print(f"\n{args.draw}: {drawn:,} pictures")
        if not drawn:
            raise InputError(f"--split {args.split}: nothing to draw; expected one of {', '.join(by_split(records))}")
    return 1 if any(not is_note(fault.kind, rules) for fault in faults) else 0


def examine(
    records: Sequence[Record], problems: Problems, images: Path, rules: Rules, num_workers: int
) -> tuple[dict[str, PictureInfo], list[Fault]]:
    """Decode the pictures of `records` and find all faults and notes, those of reading (`problems`) included."""
    pictures = look_at_pictures(list(dict.fromkeys(record.picture for record in records)), images, num_workers)
    faults = [Fault("unreadable record", where, "", what) for where, what in problems.found]
    faults += [Fault("read with a correction", "", where, what) for where, what in problems.notes]
    return pictures, [*faults, *find(records, pictures, rules)]


def _rules(args: argparse.Namespace) -> Rules:
    max_tokens = args.max_tokens
    if max_tokens is None:
        max_tokens = 20 if args.family == "refcoco" else 50  # as the official configs have it
    return Rules(
        Tokenizer.from_file(args.tokenizer) if args.tokenizer else None,
        at_least_one(max_tokens, "--max-tokens"),
        at_least_one(args.max_targets, "--max-targets"),
        args.protocol or default_protocol(args.family),
        grouped=args.family == "rrefcoco",
        mixture=args.family == "refcoco",
    )


def _check_outputs(args: argparse.Namespace) -> None:
    """Raise InputError at the start for outputs that could not be written at the end."""
    if not args.images.is_dir():
        raise InputError(f"{args.images}: no such folder; expected the pictures")
    if args.fix and args.fix.suffix != ".jsonl":
        raise InputError(f"--fix {args.fix}: the cleaned copy is JSON lines; give it the suffix .jsonl")
    for flag, path in (("--fix", args.fix), ("--list", args.list)):
        if path and path.is_dir():
            raise InputError(f"{flag} {path}: is a folder; expected a file to write")
        if path and any(path.exists() and path.samefile(source) for source in args.annotations if source.exists()):
            raise InputError(f"{flag} {path}: is the file that is checked; expected another name")
        if path:
            check_writable(path)
    if args.fix and args.list and args.fix.resolve() == args.list.resolve():
        raise InputError(f"--fix {args.fix}: is also the file of --list; expected another name")
    if args.draw:
        check_writable(args.draw / "drawing")


def _listed(faults: Sequence[Fault], repair: Repair, rules: Rules) -> Iterator[str]:
    """One line of JSON per fault."""
    reasons = {(dropped.record, dropped.file): dropped.reason for dropped in repair.dropped}
    for fault in faults:
        reason = reasons.get((fault.record, fault.file))
        entry = {
            "record": fault.record,
            "file": fault.file,
            "fault": fault.kind,
            "level": level_of(fault.kind, rules).lower(),
            "value": fault.value,
            "fix": f"the record is dropped: {reason}" if reason else KINDS[fault.kind],
        }
        yield json.dumps(entry, ensure_ascii=False) + "\n"


def _print_repair(path: Path, records: Sequence[Record], repair: Repair) -> None:
    unreadable = sum(dropped.reason == "it cannot be read" for dropped in repair.dropped)
    print(f"\n{path}: {len(repair.records):,} of {len(records) + unreadable:,} records")
    for what, count in repair.changes.items():
        if count:
            print(f"  {count:,} {what}")
    reasons: dict[str, list[str]] = {}
    for dropped in repair.dropped:
        reasons.setdefault(dropped.reason, []).append(dropped.record)
    for reason, names in reasons.items():
        more = f" and {len(names) - _SHOWN:,} more (--list FILE lists all)" if len(names) > _SHOWN else ""
        print(f"  {len(names):,} records dropped: {reason}: {one_line(', '.join(names[:_SHOWN]))}{more}")
    for split in by_split(records).keys() - by_split(repair.records).keys():
        print(f"warning: no record of split {split!r} is left", file=sys.stderr)
    if not repair.records:
        print(f"warning: {path} is empty; no record could be kept", file=sys.stderr)
