"""Examples per second from JPEG to batch, against the original's steps in a torch DataLoader, on the same cores.

    python -m benchmarks.data --annotations grefs/instance.json --images train2014 --tokenizer beit3.spm [--cores 2]

Needs the extra `torch` for the last row. The original's steps are done again here with OpenCV, pycocotools and numpy, in its
order (loading.py, transforms.py): decode, draw the merged mask and each object's, encode them, resize, encode again,
normalize, stack. "cached": every picture is in memory, as in a later epoch if the cache holds all. "first epoch": a complete
epoch, with its start, and an empty cache, so that each picture is decoded once and not once per sentence, as in training.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask

from data_pipelines.cache import PictureCache
from data_pipelines.loader import batches
from data_pipelines.prepare import prepare
from data_pipelines.prepared.sources import Folder, Prepared
from data_pipelines.records import Record, is_training, most_objects, select
from data_pipelines.transforms import Transform, clip_boxes
from instancevg_jax.errors import run_command
from instancevg_jax.inputs.pictures import PIXEL_MEAN, PIXEL_STD
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import Tokenizer

coco: Any = pycocotools.mask
SIZE, BATCH, MAX_TOKENS = 320, 16, 50


class OriginalSteps:
    """The original's dataset: item -> picture, ids, boxes and run lengths."""

    def __init__(self, records: list[Record], images: Path, tokenizer: Tokenizer) -> None:
        self.records, self.images, self.tokenizer = records, images, tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        record = self.records[index]
        bgr = cv2.imdecode(np.fromfile(self.images / record.picture, np.uint8), cv2.IMREAD_COLOR)
        assert bgr is not None
        ids, mask = self.tokenizer.encode(clean_expression(record.expressions[0]), MAX_TOKENS)
        height, width = bgr.shape[:2]
        objects: list[tuple[Any, Any]] = [(i.box, i.segmentation) for i in select(record, "official").objects]
        boxes = clip_boxes(np.array([box for box, _ in objects], np.float64).reshape(-1, 4), height, width)
        polygons = [polygon for _, segmentation in objects for polygon in segmentation]
        merged = self._draw(polygons, height, width)
        parts = [self._draw(segmentation, height, width) for _, segmentation in objects]
        for part in parts:
            coco.encode(np.asfortranarray(part))
        picture = cv2.resize(bgr, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        merged, *parts = (cv2.resize(m, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) for m in (merged, *parts))
        rles = [coco.encode(np.asfortranarray(m)) for m in (merged, *parts)]
        return self._normalize(picture), ids, mask, boxes * (SIZE / width), rles

    def _draw(self, polygons: Any, height: int, width: int) -> np.ndarray:
        if not polygons:
            return np.zeros((height, width), np.uint8)
        return coco.decode(coco.merge(coco.frPyObjects(polygons, height, width)))

    def _normalize(self, bgr: np.ndarray) -> np.ndarray:
        picture = cv2.cvtColor(bgr.astype(np.float32), cv2.COLOR_BGR2RGB)
        cv2.subtract(picture, np.array([PIXEL_MEAN]), picture)
        cv2.multiply(picture, 1 / np.array([PIXEL_STD]), picture)
        return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _collate(items: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    torch: Any = importlib.import_module("torch")
    pictures, ids, masks, boxes, rles = zip(*items, strict=True)
    stacked = (torch.from_numpy(np.stack(arrays)) for arrays in (pictures, ids, masks))
    return (*stacked, [torch.from_numpy(b) for b in boxes], list(rles))


def original(records: list[Record], images: Path, tokenizer: Tokenizer, cores: int) -> Iterator[Any]:
    """The original's loader: as many worker processes as there are cores."""
    torch: Any = importlib.import_module("torch")
    dataset: Any = OriginalSteps(records, images, tokenizer)
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=10**9)
    return iter(torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler, num_workers=cores, collate_fn=_collate))


def measure(make: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Examples per second, after a warm-up of eight batches."""
    stream = make()
    for _ in range(8):
        next(stream)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(stream)
        count += BATCH
    return count / (time.perf_counter() - start)


def measure_epoch(stream: Iterator[Any]) -> float:
    """Examples per second of a stream that ends."""
    start = time.perf_counter()
    count = sum(int(batch.example_weight.sum()) for batch in stream)
    return count / (time.perf_counter() - start)


def main() -> None:
    """The command: prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    cv2.setNumThreads(1)  # the loaders' own workers use the cores
    tokenizer = Tokenizer.from_file(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        records = prepare("custom", [args.annotations], args.images, Path(folder))
        training = [record for record in records if is_training(record.split)]
        transform = Transform(tokenizer, SIZE, SIZE, MAX_TOKENS, most_objects(training, "official"))
        cached = replace(transform, cache=PictureCache(2**30))

        def ours(source: Any, make: Transform, epochs: int | None = None) -> Iterator[Any]:
            return batches(source, make, BATCH, 0, True, epochs, args.cores, stack=make.stack)

        ways: dict[str, Callable[[], Iterator[Any]]] = {
            "this project, prepared": lambda: ours(Prepared(folder, "custom", "train"), transform),
            "the same, pictures cached": lambda: ours(Prepared(folder, "custom", "train"), cached),
            "this project, folder": lambda: ours(Folder(training, args.images), transform),
        }
        if importlib.util.find_spec("torch"):
            ways["original's steps, torch"] = lambda: original(training, args.images, tokenizer, args.cores)
        else:
            print("torch is not installed: the original's steps are left out")
        first_epoch = "this project, first epoch"
        rates: dict[str, list[float]] = {way: [] for way in (*ways, first_epoch)}
        for _ in range(args.rounds):
            for way, make in ways.items():
                rates[way].append(measure(make, args.seconds))
            fresh = replace(transform, cache=PictureCache(2**30))
            rates[first_epoch].append(measure_epoch(ours(Prepared(folder, "custom", "train"), fresh, 1)))
    pictures = len({record.picture for record in training})
    print(f"{len(training)} training records of {pictures} pictures")
    print(f"{args.cores} cores, {SIZE} px, batch {BATCH}, median of {args.rounds} rounds of {args.seconds:g} s each")
    for way, found in rates.items():
        print(f"{way:26} {statistics.median(found):7.0f} examples/s   ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    run_command(main)
