"""From the data section of a config to items and the transform that makes examples of them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import grain
import jax
import numpy as np

from data_pipelines import loader, shapes
from data_pipelines.masks import decode
from data_pipelines.records import select
from data_pipelines.referring import FAMILIES
from data_pipelines.sources import Prepared
from data_pipelines.transforms import Choice, Transform, box_of, mask_of
from instancevg_jax.config import Config
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

    def transform(self, item, rng: np.random.Generator) -> Batch:
        """An item's example, without the batch dimension."""
        ...

    def group(self, record: int) -> int:
        """Number of the group of sentences a record belongs to (R-RefCOCO's metric), -1 where there are none."""
        ...

    def show(self, record: int) -> Shown:
        """A record for a report."""
        ...

    def name(self, item: int) -> str:
        """What a person finds an item by, in messages."""
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
        batch = shapes.make_batch([self._dataset_of(item)[item]], self.tokenizer, self.max_tokens, self.max_targets)
        return jax.tree.map(lambda x: x[0], batch)

    def group(self, record: int) -> int:
        """These records are in no groups."""
        del record
        return -1

    def name(self, item: int) -> str:
        """Split, level and index, all that an example is made of."""
        return f"{self.dataset.split} {self._dataset_of(item).level} {item}"

    def _dataset_of(self, item: int) -> shapes.ShapesDataset:
        easy = item < self.curriculum or (self.curriculum and item % 2 == 0)
        return replace(self.dataset, level="basic") if easy else self.dataset

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

    def transform(self, item: Choice, rng: np.random.Generator) -> Batch:
        """Read, resize, tokenize: see `Transform`."""
        return self.make(item, rng)

    @cached_property
    def _groups(self) -> dict[str, int]:
        names = (self.source.load(record)[0].group for record in range(self.length))
        return {name: number for number, name in enumerate(dict.fromkeys(names)) if name}

    def group(self, record: int) -> int:
        """Groups are numbered in the order of the file."""
        return self._groups.get(self.source.load(record)[0].group, -1)

    def name(self, item: int) -> str:
        """The ids of the record, or of the alternatives of which one was drawn, and their pictures."""
        records = [self.source.load(position)[0] for position in self.source[item].positions]
        return ", ".join(f"{record.id} ({record.picture})" for record in records)

    def show(self, record: int) -> Shown:
        """The record with its picture at its own size."""
        about, data = self.source.load(record)
        picture = decode_picture(data, about.picture)
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
    make = Transform(tokenizer, height, width, model.max_tokens, data.max_targets)
    return ReferringSplit(source, make, min(length or len(source), len(source)))


def train_batches(config: Config, tokenizer: Tokenizer) -> grain.DatasetIterator[Batch]:
    """This process's share of every global training batch, without end; has `get_state` and `set_state`."""
    source = open_split(config, config.data.train_split, tokenizer)
    if isinstance(source, ShapesSplit):
        source = replace(source, curriculum=config.data.shapes_curriculum)
    return loader.batches(
        source,
        source.transform,
        batch_size=config.train.batch_size // jax.process_count(),
        seed=config.train.seed,
        shuffle=config.data.name != "shapes",
        num_epochs=None,
        num_workers=config.data.num_workers,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )
