"""The embedded data as a split. The loader's workers draw scenes when they are needed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from data_pipelines.shapes import baselines
from data_pipelines.shapes.dataset import ShapesDataset
from data_pipelines.split import ENDLESS, Description, Guess, Sample
from data_pipelines.transforms import Example, check_count, stack, unit_boxes
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.types import Batch

LANGUAGE_EXAMPLES = 3000  # training scenes from which the language-only baseline learns


@dataclass(frozen=True)
class ShapesSplit:
    """A split of the embedded data; infinite unless it has a `length`.

    With a `curriculum`, items below that index have the first level of `turns`, and later ones cycle through all levels.
    """

    dataset: ShapesDataset
    tokenizer: Tokenizer
    max_tokens: int
    max_targets: int
    length: int = ENDLESS
    curriculum: int = 0
    turns: tuple[str, ...] = ("basic", "full")

    @property
    def drawn(self) -> bool:
        """Every item is one record."""
        return False

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> int:
        """The index itself: drawing is the work of `transform`."""
        return index

    def transform(self, item: int, rng: np.random.Generator) -> Example:
        """The scene of this index, drawn at the network's size. Nothing is random."""
        del rng
        scene = self._dataset_of(item)[item]
        targets = list(scene.referents)
        try:
            check_count(len(targets), self.max_targets)
        except InputError as error:
            raise InputError(f"{self.name(item)} ({scene.expression!r}): {error}") from error
        token_ids, token_mask = self.tokenizer.encode(clean_expression(scene.expression), self.max_tokens)
        boxes = unit_boxes(scene.boxes_xyxy[targets], *self.dataset.size)
        return Example(scene.image, token_ids, token_mask, boxes, list(scene.masks[targets]), scene.mask)

    def stack(self, examples: Sequence[Example]) -> Batch:
        """See `transforms.stack`."""
        return stack(examples, self.max_targets)

    def name(self, item: int) -> str:
        """Split, level and index, which determine an example."""
        return f"{self.dataset.split} {self._dataset_of(item).level} {item}"

    def describe(self, record: int) -> Description:
        """Tags: `kind` and `template` of the sentence, and which `words` (colour, shape, ...) it uses."""
        scene = self.dataset.describe(record)
        name, (height, width) = f"{self.dataset.split}[{record}]", self.dataset.size
        file_name = f"{self.dataset.split}_{record:012d}.png"
        tags = {"kind": scene.kind, "template": scene.template, "words": " + ".join(scene.attributes)}
        targets = tuple(map(str, scene.referents))
        return Description(name, file_name, height, width, scene.expression, targets, tags, len(scene.objects))

    def group(self, record: int) -> int:
        """There are no groups."""
        del record
        return -1

    def truth(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """The targets as they are drawn, at the network's size."""
        scene = self.dataset[record]
        return scene.boxes_xyxy[list(scene.referents)], scene.mask

    def show(self, record: int) -> Sample:
        """The scene as it is drawn."""
        scene = self.dataset[record]
        targets = list(scene.referents)
        return Sample(scene.image, scene.expression, scene.boxes_xyxy[targets], scene.masks[targets])

    def guesses(self, record: int) -> dict[str, Guess]:
        """See `baselines`."""
        scene = self.dataset[record]
        return {
            "always none": baselines.always_none(scene),
            "language only": self._language_only(scene),
            "colour words only": baselines.colour_only(scene),
        }

    @cached_property
    def _language_only(self) -> baselines.LanguageOnly:
        return baselines.LanguageOnly(replace(self.dataset, split="train").load(0, LANGUAGE_EXAMPLES))

    def _dataset_of(self, item: int) -> ShapesDataset:
        if not self.curriculum:
            return self.dataset
        return replace(self.dataset, level=self.turns[0 if item < self.curriculum else item % len(self.turns)])


def open_shapes(config: Config, split: str, tokenizer: Tokenizer, length: int) -> ShapesSplit:
    """`length` > 0: the first records, of data.shapes_level; 0: the infinite split for training, with its curriculum."""
    model, data = config.model, config.data
    dataset = ShapesDataset(split, data.shapes_level, (model.image_height, model.image_width))
    if length:
        return ShapesSplit(dataset, tokenizer, model.max_tokens, data.max_targets, length)
    return ShapesSplit(
        dataset,
        tokenizer,
        model.max_tokens,
        data.max_targets,
        curriculum=data.shapes_curriculum,
        turns=data.shapes_turns,
    )
