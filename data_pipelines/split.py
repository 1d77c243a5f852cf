"""The interface of a split of a data set, for training, evaluation and reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_pipelines.transforms import Example
from instancevg_jax.types import Batch

ENDLESS = 2**31 - 1  # length of an infinite split


@dataclass(frozen=True)
class Description:
    """A record without its picture; cheap to get."""

    id: str  # the record's name in its annotation file
    file_name: str  # its picture's
    height: int  # of the picture, pixels
    width: int
    expression: str
    object_ids: tuple[str, ...]  # the annotation file's ids of the target objects
    tags: Mapping[str, str]  # what to group results by, such as {"template": "the", "kind": "single"}
    num_objects: int = 0  # in the whole picture, targets or not; 0: unknown


@dataclass(frozen=True)
class Sample:
    """A record with its picture and targets, in the picture's own pixels."""

    picture: np.ndarray  # [H, W, 3] uint8, RGB
    expression: str
    boxes_xyxy: np.ndarray  # [N, 4] of the target objects
    masks: np.ndarray  # [N, H, W] bool


@dataclass(frozen=True)
class Guess:
    """A baseline's answer to a record. No target: no boxes and an empty mask."""

    boxes_xyxy: np.ndarray  # [M, 4] float32, pixels
    mask: np.ndarray  # [H, W] bool, merged


class Split(Protocol):
    """A source for the loader, opened once and used for batches, metrics, reports and messages.

    An item is one element of an epoch. Outside training every item is one record, with the same number.
    """

    @property
    def drawn(self) -> bool:
        """Whether an item is several sentences or records, of which one is drawn at random."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> object: ...

    def transform(self, item, rng: np.random.Generator) -> Example:
        """The example of an item."""
        ...

    def stack(self, examples: Sequence[Any]) -> Batch:
        """The batch of these examples."""
        ...

    def name(self, item: int) -> str:
        """The item's name in messages."""
        ...

    def describe(self, record: int) -> Description:
        """A record's names, sentence and tags."""
        ...

    def group(self, record: int) -> int:
        """Number of the group of sentences that a record belongs to (R-RefCOCO's metrics); -1: no group."""
        ...

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [N, 4], xyxy, and merged mask [H, W], bool, of the targets in the picture's own pixels."""
        ...

    def show(self, record: int) -> Sample:
        """A record with its picture and its targets."""
        ...

    def guesses(self, record: int) -> dict[str, Guess]:
        """Name of each baseline -> its answer to a record; {} for data sets without baselines."""
        ...
