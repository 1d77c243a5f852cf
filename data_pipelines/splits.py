"""From the data section of a config to items and the transform that makes examples of them."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import grain
import jax
import numpy as np

from data_pipelines import loader
from data_pipelines.augment import Jitter
from data_pipelines.cache import PictureCache
from data_pipelines.masks import decode
from data_pipelines.prepared.builders import FAMILIES
from data_pipelines.prepared.sources import Prepared
from data_pipelines.records import Record, check_protocol, is_training, select
from data_pipelines.shapes.dataset import TOKENIZER_PATH, ShapesDataset, make_batch
from data_pipelines.transforms import Choice, Example, Transform, box_of, mask_of, truth_of
from instancevg_jax.config import Config, DataConfig
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import decode_picture
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch

ENDLESS = 2**31 - 1  # items of a split that has no end


@dataclass(frozen=True)
class Shown:
    """A record as a person would look at it, in the picture's own pixels."""

    picture: np.ndarray  # [H, W, 3] uint8, RGB
    expression: str
    boxes_xyxy: np.ndarray  # [N, 4] of the objects that are meant
    masks: np.ndarray  # [N, H, W] bool


@dataclass(frozen=True)
class Description:
    """What a record is about; cheap to get, for the picture is not read."""

    id: str  # the record's name in its annotation file
    file_name: str  # its picture's
    height: int  # of the picture, pixels
    width: int
    expression: str
    object_ids: tuple[str, ...]  # the annotation file's ids of the objects that are meant
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

    def describe(self, record: int) -> Description:
        """A record's names, sentence and tags."""
        ...

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """What is right in the picture's own pixels: boxes [N, 4], xyxy, and the merged mask [H, W], bool."""
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

    With a `curriculum`, items are of the first level of `turns` up to that index, and of all by turns from there.
    """

    dataset: ShapesDataset
    tokenizer: Tokenizer
    max_tokens: int
    max_targets: int
    length: int = ENDLESS
    curriculum: int = 0
    turns: tuple[str, ...] = ("basic", "full")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> int:
        """The index itself: drawing is the transform's work, so that the loader's workers do it."""
        return index

    def transform(self, item: int, rng: np.random.Generator) -> Batch:
        """One example without the batch dimension. Nothing is random: the index says it all."""
        del rng
        example = self._dataset_of(item)[item]
        batch = make_batch([example], self.tokenizer, self.max_tokens, self.max_targets)
        return jax.tree.map(lambda x: x[0], batch)

    def stack(self, examples: Sequence[Batch]) -> Batch:
        """The examples are padded already."""
        return loader.stack_arrays(examples)

    def group(self, record: int) -> int:
        """These records are in no groups."""
        del record
        return -1

    def name(self, item: int) -> str:
        """Split, level and index, all that an example is made of."""
        return f"{self.dataset.split} {self._dataset_of(item).level} {item}"

    def _dataset_of(self, item: int) -> ShapesDataset:
        if not self.curriculum:
            return self.dataset
        return replace(self.dataset, level=self.turns[0 if item < self.curriculum else item % len(self.turns)])

    def describe(self, record: int) -> Description:
        """`words`: which attributes the sentence names."""
        about = self.dataset.describe(record)
        name, (height, width) = f"{self.dataset.split}[{record}]", self.dataset.size
        file_name = f"{self.dataset.split}_{record:012d}.png"
        tags = {"kind": about.kind, "template": about.template, "words": " + ".join(about.attributes)}
        meant = tuple(map(str, about.referents))
        return Description(name, file_name, height, width, about.expression, meant, tags, len(about.objects))

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """The pictures are drawn at the network's size, so these are the targets."""
        example = self.dataset[record]
        return example.boxes_xyxy[list(example.referents)], example.mask

    def show(self, record: int) -> Shown:
        """The record as it is drawn."""
        example = self.dataset[record]
        meant = list(example.referents)
        return Shown(example.image, example.expression, example.boxes_xyxy[meant], example.masks[meant])


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
        names = (self._record(record).group for record in range(self.length))
        return {name: number for number, name in enumerate(dict.fromkeys(names)) if name}

    def _record(self, record: int) -> Record:
        """The record; of alternatives, which only training splits have, the first."""
        return self.source.record(self.source[record].positions[0])

    def group(self, record: int) -> int:
        """Groups are numbered in the order of the file."""
        return self._groups.get(self._record(record).group, -1)

    def describe(self, record: int) -> Description:
        """`kind`: whether none, one or many objects are meant."""
        about = self._record(record)
        meant = tuple(instance.id for instance in select(about, self.make.protocol).objects)
        kind = "none" if not meant else "single" if len(meant) == 1 else "multi"
        return Description(
            about.id, about.picture, about.height, about.width, about.expressions[0], meant, {"kind": kind}
        )

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """What the targets are made of, before they are resized."""
        return truth_of(self._record(record), self.make.protocol)

    def name(self, item: int) -> str:
        """The ids of the record, or of the alternatives of which one was drawn, and their pictures."""
        records = [self.source.load(position)[0] for position in self.source[item].positions]
        return ", ".join(f"{record.id} ({record.picture})" for record in records)

    def show(self, record: int) -> Shown:
        """The record with its picture at its own size."""
        about, read = self.source.load(self.source[record].positions[0])
        height, width = about.height, about.width
        objects, _ = select(about, self.make.protocol)
        masks = [decode(mask_of(thing, height, width)).astype(bool) for thing in objects]
        boxes = [box_of(thing, height, width) for thing in objects]
        return Shown(
            decode_picture(read(), about.picture),
            about.expressions[0],
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(masks, bool).reshape(-1, height, width),
        )


def load_tokenizer(config: Config) -> Tokenizer:
    """The tokenizer that the config names; the embedded data set's own where it names none."""
    if not config.data.tokenizer and config.data.name != "shapes":
        raise InputError(
            f"data.tokenizer is not set; {config.data.name!r} needs a sentencepiece model such as beit3.spm"
        )
    return Tokenizer.from_file(config.data.tokenizer or TOKENIZER_PATH)


def open_split(config: Config, split: str, tokenizer: Tokenizer, *, length: int = 0) -> Split:
    """A split as `loader.batches` takes it (the source, and its `transform`). `length` > 0 keeps the first items only.

    `config.eval.protocol` decides which objects of a record count, in training as in evaluation. Raises InputError for a data
    set or a split that is not there, for an unknown protocol, and for records that the protocol or the task cannot use.
    """
    model, data = config.model, config.data
    height, width = model.image_height, model.image_width
    protocol = check_protocol(config.eval.protocol)
    if data.name == "shapes":
        dataset = ShapesDataset(split, data.shapes_level, (height, width))
        return ShapesSplit(dataset, tokenizer, model.max_tokens, data.max_targets, length or ENDLESS)
    if data.name not in FAMILIES:
        raise InputError(f"data.name is {data.name!r}; expected 'shapes' or one of {', '.join(FAMILIES)}")
    source = Prepared(data.data_dir, data.name, split)
    _check_use(source, config)
    cache = _cache(data, source.digest, height, width)
    make = Transform(tokenizer, height, width, model.max_tokens, data.max_targets, protocol, cache=cache)
    return ReferringSplit(source, make, min(length or len(source), len(source)))


def _check_use(source: Prepared, config: Config) -> None:
    """The families of the original are read as it reads them, whatever they hold; not so anyone's own data."""
    if config.data.name == "custom" and config.eval.protocol == "official" and source.partial:
        raise InputError(
            f"{source.split}: record {source.partial} has an object with only a box or only a mask, which eval.protocol "
            "'official' would drop, with what follows it; expected eval.protocol 'strict'"
        )
    if config.eval.task == "rrefcoco" and not is_training(source.split) and source.ungrouped:
        raise InputError(
            f"{source.split}: record {source.ungrouped} is in no group, and the metrics of eval.task 'rrefcoco' are of "
            "groups; prepare it with an instance_index.json beside the annotations that covers the split"
        )


def _cache(data: DataConfig, pictures: str, height: int, width: int) -> PictureCache | None:
    """One process's share of the cache. `pictures` is their digest."""
    if data.picture_cache_mb < 0:
        raise InputError(f"data.picture_cache_mb is {data.picture_cache_mb}; expected 0 (none) or more")
    if not data.picture_cache_mb:
        return None
    return _shared_cache(data.picture_cache_mb * 10**6 // max(data.num_processes, 1), pictures, height, width)


@functools.lru_cache(maxsize=1)
def _shared_cache(max_bytes: int, pictures: str, height: int, width: int) -> PictureCache:
    """The one cache of this process, for training and evaluation; a new one for other pictures or another size."""
    del pictures, height, width
    return PictureCache(max_bytes)


def _jitter(data: DataConfig) -> Jitter:
    smallest, largest = data.jitter_scales
    if not 0 < smallest <= largest:
        raise InputError(f"data.jitter_scales is {data.jitter_scales}; expected two numbers, 0 < smallest <= largest")
    if not 0 <= data.jitter_flip <= 1:
        raise InputError(f"data.jitter_flip is {data.jitter_flip}; expected a probability from 0 to 1")
    return Jitter(smallest, largest, data.jitter_flip)


def train_batches(config: Config, source: Split) -> grain.DatasetIterator[Batch]:
    """This process's share of every global training batch of `source`, without end; has `get_state` and `set_state`."""
    data = config.data
    if isinstance(source, ShapesSplit):
        source = replace(source, curriculum=data.shapes_curriculum, turns=data.shapes_turns)
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
