"""Ask a model about a picture of your own.

The same preprocessing, tokens and postprocessing as in evaluation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool
from pycocotools import mask as coco_masks

from instancevg_jax import checkpoint
from instancevg_jax.answers.postprocess import Grounding, postprocess, to_original_size
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import Picture, load_picture, prepare_picture
from instancevg_jax.inputs.text import clean_expression
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.types import Outputs, Predictions

DEMO_CHECKPOINT = Path(__file__).parent.parent / "assets" / "demo_checkpoint"


@dataclass(frozen=True)
class Predictor:
    """Picture and sentence -> Grounding. Immutable, and safe to share between threads.

    The network is compiled once per batch size (rounded up to a power of two, at most `config.eval.batch_size`), never
    for another picture size, sentence or threshold.

        predictor = Predictor.from_pretrained("DIR")
        grounding = predictor.predict("street.jpg", "the two people on the left")
    """

    config: Config
    tokenizer: Tokenizer
    _state: nnx.State
    _forward: Callable[..., Outputs]
    _read_off: Callable[..., Predictions]

    @classmethod
    def from_pretrained(cls, directory: str | Path | None = None) -> "Predictor":
        """Load a checkpoint directory; None is the small demo model that comes with the package.

        Raises InputError for a directory that is missing, incomplete or inconsistent.
        """
        if directory is None:
            directory = DEMO_CHECKPOINT
            if not directory.is_dir():
                raise InputError("no checkpoint is given, and this installation comes without the demo checkpoint")
        model, config = checkpoint.load_model(directory)
        return cls.from_model(model, config, checkpoint.load_tokenizer(directory))

    @classmethod
    def from_model(cls, model: InstanceVG, config: Config, tokenizer: Tokenizer) -> "Predictor":
        """Wrap a model in memory. Raises InputError if the tokenizer has ids that the model lacks."""
        if tokenizer.vocab_size > config.model.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size is {config.model.vocab_size}; "
                "they are not of one checkpoint"
            )
        graphdef, state = nnx.split(model)
        settings = dataclasses.replace(config.eval)

        def forward(state: nnx.State, images: jax.Array, token_ids: jax.Array, token_mask: jax.Array) -> Outputs:
            return nnx.merge(graphdef, state)(images, token_ids, token_mask)

        def read_off(outputs: Outputs, threshold: float) -> Predictions:
            return postprocess(outputs, dataclasses.replace(settings, score_threshold=threshold))

        return cls(config, tokenizer, state, jax.jit(forward), jax.jit(read_off, static_argnums=1))

    def with_model(self, model: InstanceVG) -> "Predictor":
        """The same for other parameters of the same architecture, without compiling anew."""
        return dataclasses.replace(self, _state=nnx.state(model))

    def predict(self, picture: Picture, expression: str, score_threshold: float | None = None) -> Grounding:
        """What the sentence means in the picture.

        Args:
            picture: a path, a PIL image or an RGB array (see `preprocess.load_picture`).
            expression: the sentence; beyond `config.model.max_tokens` it is cut.
            score_threshold: a query counts above it; None is `config.eval.score_threshold`.

        Returns:
            Grounding in the picture's own pixels, best object first; N = 0 and `exists` False where nothing is meant.

        Raises:
            InputError: the picture cannot be read, the expression has no words, or the threshold is outside [0, 1].
        """
        return self.predict_batch([picture], [expression], score_threshold)[0]

    def predict_batch(
        self, pictures: Sequence[Picture], expressions: Sequence[str], score_threshold: float | None = None
    ) -> list[Grounding]:
        """The same for several pictures, each with its sentence; in order. Raises InputError as `predict` does."""
        if len(pictures) != len(expressions):
            raise InputError(f"{len(pictures)} pictures and {len(expressions)} expressions; expected as many of each")
        threshold = self.config.eval.score_threshold if score_threshold is None else float(score_threshold)
        if not 0 <= threshold <= 1:
            raise InputError(f"score_threshold is {threshold}; expected a number from 0 to 1")
        step = max(1, self.config.eval.batch_size)
        return [
            grounding
            for start in range(0, len(pictures), step)
            for grounding in self._one_batch(
                pictures[start : start + step], expressions[start : start + step], threshold, step
            )
        ]

    def _one_batch(
        self, pictures: Sequence[Picture], expressions: Sequence[str], threshold: float, most: int
    ) -> list[Grounding]:
        size = min(most, 1 << (len(pictures) - 1).bit_length())
        height, width = self.config.model.image_height, self.config.model.image_width
        images = np.zeros((size, height, width, 3), np.float32)
        token_ids = np.zeros((size, self.config.model.max_tokens), np.int32)
        token_mask = np.ones(token_ids.shape, bool)
        original_sizes = []
        for i, (picture, expression) in enumerate(zip(pictures, expressions, strict=True)):
            token_ids[i], token_mask[i] = self.tokenizer.encode(clean_expression(expression), token_ids.shape[1])
            rgb = load_picture(picture)
            original_sizes.append(rgb.shape[:2])
            images[i] = prepare_picture(rgb, height, width)
        outputs = self._forward(self._state, images, token_ids, token_mask)
        predictions: Predictions = jax.device_get(self._read_off(outputs, threshold))
        one_object = self.config.eval.task == "refcoco"
        return [to_original_size(predictions, i, h, w, one_object) for i, (h, w) in enumerate(original_sizes)]


def grounding_to_json(grounding: Grounding) -> dict[str, Any]:
    """A Grounding as JSON values: pixels, scores, and masks as COCO run-length encoding ({"size": [H, W], "counts"})."""
    objects = zip(grounding.boxes_xyxy, grounding.scores, grounding.points_xy, grounding.masks, strict=True)
    return {
        "height": grounding.mask.shape[0],
        "width": grounding.mask.shape[1],
        "exists": grounding.exists,
        "no_target_probability": grounding.no_target_probability,
        "objects": [
            {"box_xyxy": box.tolist(), "score": float(score), "point_xy": point.tolist(), "mask": run_lengths(mask)}
            for box, score, point, mask in objects
        ],
        "mask": run_lengths(grounding.mask),
    }


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """A mask in COCO's run-length encoding, {"size": [H, W], "counts": text}."""
    encoded = cast(Any, coco_masks.encode(np.asfortranarray(mask, np.uint8)))  # its stub says that counts is text
    return {"size": list(mask.shape), "counts": str(encoded["counts"], "ascii")}
