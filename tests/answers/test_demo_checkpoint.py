"""The model that comes with the package finds what plain sentences mean, and is small."""

import itertools

import numpy as np
import pytest

from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax import Predictor
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.boxes import paired_iou
from instancevg_jax.checkpoint import load_provenance


@pytest.mark.parametrize(("word", "least"), [("colour", 0.9), ("shape", 0.7)])
def test_finds_objects_by_one_word(word, least):
    """Sentences that name one object by its colour or shape alone; a random object would be right 36 % of the time."""
    dataset = ShapesDataset("test")
    indices = (i for i in itertools.count() if dataset.describe(i).attributes == (word,))
    chosen = [dataset[i] for i in itertools.islice((i for i in indices if dataset.describe(i).kind == "single"), 32)]
    predictor = Predictor.from_pretrained()
    groundings = predictor.predict_batch([(e.image, e.expression) for e in chosen], score_threshold=0.0)
    right = [
        paired_iou(grounding.boxes_xyxy[0], example.boxes_xyxy[example.referents[0]]) >= 0.5
        for grounding, example in zip(groundings, chosen, strict=True)
    ]
    assert np.mean(right) >= least


def test_is_small():
    assert sum(path.stat().st_size for path in DEMO_CHECKPOINT.rglob("*")) < 8 * 2**20


def test_carries_the_digest_of_every_file():
    assert all(len(entry["sha256"]) == 64 for entry in load_provenance(DEMO_CHECKPOINT)["files"].values())
