"""From the data section of a config to items and the transform that makes examples of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import grain
import jax
import numpy as np

from data_pipelines import loader, shapes
from data_pipelines.augment import Jitter
from data_pipelines.masks import decode
from data_pipelines.picture_cache import PictureCache
from data_pipelines.records import select
from data_pipelines.referring import FAMILIES
from data_pipelines.sources import Prepared
from data_pipelines.transforms import Choice, Example, Transform, box_of, mask_of
from instancevg_jax.config import Config, DataConfig
from instancevg_jax.errors import InputError
from instancevg_jax.preprocess import decode_picture
from instancevg_jax.tokenizer import Tokenizer
from instancevg_jax.types import Batch

ENDLESS = 2**31 - 1  # items of a split that has no end


@dataclass(frozen=True)
class Shown:
    """A record as a person would look at it, in the picture's own pixels."""

    picture: np.ndarray  # [H, W, 3] uint8, RGB
    expression: str
    boxes_xyxy: np.ndarray  # [N, 4] of the objects that are meant
    masks: np.ndarray  # [N, H, W] bool
    tags: dict[str, str]  # what to group results by, such as {"template": "the", "kind": "single"}
    num_objects: int = 0  # objects to choose from, where that is known: a random one is right once in so many


class Split(Protocol):
    """What training and evaluation need of a split, whatever the data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...

    def transform(self, item, rng: np.random.Generator) -> Any:
        """An item's example, as `stack` takes it."""
        ...

    def stack(self, examples: Sequence[Any]) -> Batch:
        """The batch of these examples."""
        ...

    def group(self, record: int) -> int:
        """Number of the group of sentences a record belongs to (R-RefCOCO's metric), -1 where there are none."""
        ...

    def show(self, record: int) -> Shown:
        """A record for a report."""
        ...


@dataclass(frozen=True)
class ShapesSplit:
    """The embedded data as a source of the loader; `len` may be cut short for evaluation.

    With a `curriculum`, items are of level "basic" up to that index, and by turns "basic" and of the data set's level from there.
    """

    dataset: shapes.ShapesDataset
    tokenizer: Tokenizer
    max_tokens: int
    max_targets: int
    length: int = ENDLESS
    curriculum: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> int:
        """The index itself: drawing is the transform's work, so that the loader's workers do it."""
        return index

    def transform(self, item: int, rng: np.random.Generator) -> Batch:
        """One example without the batch dimension. Nothing is random: the index says it all."""
        del rng
        easy = item < self.curriculum or (self.curriculum and item % 2 == 0)
        dataset = replace(self.dataset, level="basic") if easy else self.dataset
        batch = shapes.make_batch([dataset[item]], self.tokenizer, self.max_tokens, self.max_targets)
        return jax.tree.map(lambda x: x[0], batch)

    def stack(self, examples: Sequence[Batch]) -> Batch:
        """The examples are padded already."""
        return loader.stack_arrays(examples)

    def group(self, record: int) -> int:
        """These records are in no groups."""
        del record
        return -1

    def show(self, record: int) -> Shown:
        """The record for a report. `words`: which attributes its sentence names."""
        example = self.dataset[record]
        meant = list(example.referents)
        tags = {"kind": example.kind, "template": example.template, "words": " + ".join(example.attributes)}
        boxes, masks = example.boxes_xyxy[meant], example.masks[meant]
        return Shown(example.image, example.expression, boxes, masks, tags, len(example.objects))


@dataclass(frozen=True)
class ReferringSplit:
    """A split of a prepared data set of referring expressions."""

    source: Prepared
    make: Transform
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Choice:
        return self.source[index]

    def transform(self, item: Choice, rng: np.random.Generator) -> Example:
        """Read, resize, tokenize: see `Transform`."""
        return self.make(item, rng)

    def stack(self, examples: Sequence[Example]) -> Batch:
        """Normalize and pad."""
        return self.make.stack(examples)

    @cached_property
    def _groups(self) -> dict[str, int]:
        names = (self.source.load(record)[0].group for record in range(self.length))
        return {name: number for number, name in enumerate(dict.fromkeys(names)) if name}

    def group(self, record: int) -> int:
        """Groups are numbered in the order of the file."""
        return self._groups.get(self.source.load(record)[0].group, -1)

    def show(self, record: int) -> Shown:
        """The record with its picture at its own size."""
        about, read = self.source.load(record)
        picture = decode_picture(read(), about.picture)
        height, width = picture.shape[:2]
        objects, _ = select(about, self.make.protocol)
        masks = [decode(mask_of(thing, height, width)).astype(bool) for thing in objects]
        boxes = [box_of(thing, height, width) for thing in objects]
        kind = "none" if not objects else "single" if len(objects) == 1 else "multi"
        return Shown(
            picture,
            about.expressions[0],
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(masks, bool).reshape(-1, height, width),
            {"kind": kind},
        )


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the config names; the embedded data set's own where it names none."""
    if not config.data.tokenizer and config.data.name != "shapes":
        raise InputError(
            f"data.tokenizer is not set; {config.data.name!r} needs a sentencepiece model such as beit3.spm"
        )
    return Tokenizer.from_file(config.data.tokenizer or shapes.TOKENIZER_PATH)


def open_split(config: Config, split: str, tokenizer: Tokenizer, *, length: int = 0) -> Split:
    """A split as `loader.batches` takes it (the source, and its `transform`). `length` > 0 keeps the first items only.

    Raises InputError for a data set or a split that is not there.
    """
    model, data = config.model, config.data
    height, width = model.image_height, model.image_width
    if data.name == "shapes":
        dataset = shapes.ShapesDataset(split, data.shapes_level, (height, width))
        return ShapesSplit(dataset, tokenizer, model.max_tokens, data.max_targets, length or ENDLESS)
    if data.name not in FAMILIES:
        raise InputError(f"data.name is {data.name!r}; expected 'shapes' or one of {', '.join(FAMILIES)}")
    source = Prepared(data.data_dir, data.name, split)
    make = Transform(tokenizer, height, width, model.max_tokens, data.max_targets, cache=_cache(data))
    return ReferringSplit(source, make, min(length or len(source), len(source)))


def _cache(data: DataConfig) -> PictureCache | None:
    """One process's share of the cache."""
    if data.picture_cache_mb < 0:
        raise InputError(f"data.picture_cache_mb is {data.picture_cache_mb}; expected 0 (none) or more")
    return PictureCache(data.picture_cache_mb * 10**6 // max(data.num_processes, 1)) if data.picture_cache_mb else None


def _jitter(data: DataConfig) -> Jitter:
    smallest, largest = data.jitter_scales
    if not 0 < smallest <= largest:
        raise InputError(f"data.jitter_scales is {data.jitter_scales}; expected two numbers, 0 < smallest <= largest")
    if not 0 <= data.jitter_flip <= 1:
        raise InputError(f"data.jitter_flip is {data.jitter_flip}; expected a probability from 0 to 1")
    return Jitter(smallest, largest, data.jitter_flip)


def train_batches(config: Config, tokenizer: Tokenizer) -> grain.DatasetIterator[Batch]:
    """This process's share of every global training batch, without end; has `get_state` and `set_state`."""
    data = config.data
    source = open_split(config, data.train_split, tokenizer)
    if isinstance(source, ShapesSplit):
        source = replace(source, curriculum=data.shapes_curriculum)
    if data.jitter:
        if not isinstance(source, ReferringSplit):
            raise InputError(f"data.jitter is on; the {data.name!r} data is drawn and has no jitter")
        source = replace(source, make=replace(source.make, jitter=_jitter(data)))
    return loader.batches(
        source,
        source.transform,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.train.seed,
        shuffle=data.name != "shapes",
        num_epochs=None,
        num_workers=data.num_workers,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
        num_processes=data.num_processes,
        stack=source.stack,
    )
