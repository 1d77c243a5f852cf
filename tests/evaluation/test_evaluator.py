"""Evaluation with networks whose answers are known: protocols, resolutions, the sweep, COCO results, and many devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from configs import shapes as shapes_config
from data_pipelines import splits
from data_pipelines.prepare import prepare
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation import coco
from instancevg_jax.evaluation.evaluator import RULES, Evaluation, Evaluator, conditions, of_all, open_eval_split
from instancevg_jax.evaluation.metrics import Row
from instancevg_jax.evaluation.sweep import SWEPT, best_thresholds
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime import sharding
from instancevg_jax.types import Outputs
from tests import oracle
from tests.data_pipelines.make import HEIGHT, NULL, WIDTH, annotation, generalized, picture

SIDE = 32  # pixels of the network's picture; those of `make` have 60 x 40
PICTURE = "COCO_train2014_000000000123.jpg"


def evaluate(model: nnx.Module, config: Config, tokenizer: Tokenizer, split: str, **asked: Any) -> Evaluation:
    """One measured split."""
    evaluator = Evaluator(cast(Any, model), config, sharding.make_mesh(), sweep=asked.pop("sweep", False))
    source = open_eval_split(config, split, tokenizer)
    return evaluator(cast(Any, model), split, source, **asked)


def coco_entries(model: nnx.Module, config: Config, tokenizer: Tokenizer, split: str) -> list[dict]:
    """The COCO results of a split."""
    source, found = open_eval_split(config, split, tokenizer, sentences=True), []
    evaluate(model, config, tokenizer, split, on_answer=collector(found, source))
    return found


def collector(found: list[dict], source: splits.Split) -> Any:
    def collect(record: int, grounding: Grounding, row: Row) -> None:
        found.extend(coco.entries(grounding, source.describe(record), record))

    return collect


class Square(nnx.Module):
    """Three queries, whatever the picture: an empty box with a mask of everything, the square of `annotation()`, another box."""

    def __call__(self, images, token_ids, token_mask) -> Outputs:
        count = len(images)
        objectness = jnp.log(jnp.array([0.95 / 0.05, 0.9 / 0.1, 0.4 / 0.6]))
        square = [20 / WIDTH, 20 / HEIGHT, 20 / WIDTH, 20 / HEIGHT]
        boxes = jnp.array([[0.5, 0.5, 0, 0], square, [0.8, 0.2, 0.2, 0.2]])
        masks = jnp.full((3, SIDE, SIDE), -9.0)
        masks = masks.at[0].set(9).at[1, 8:24, 6:16].set(9).at[2, 3:10, 23:29].set(9)
        every = lambda x: jnp.broadcast_to(x, (count, *x.shape))  # noqa: E731
        return Outputs(
            class_logits=every(jnp.stack([objectness, jnp.zeros(3)], -1))[None],
            boxes=every(boxes)[None],
            mask_logits=every(masks),
            global_mask_logits=jnp.full((count, SIDE, SIDE), -9.0),
            existence_logits=every(jnp.array([10.0, -10.0])),
            points=every(boxes[:, :2]),
            point_map=jnp.zeros((count, 2, 2)),
        )


class Brightness(nnx.Module):
    """Three queries, one a colour channel: scores, boxes and masks all follow from how bright the picture is."""

    def __call__(self, images, token_ids, token_mask) -> Outputs:
        light = images.mean((1, 2))
        centres = jnp.stack([jax.nn.sigmoid(light), jax.nn.sigmoid(-light)], -1)
        return Outputs(
            class_logits=jnp.stack([2 * light, -light], -1)[None],
            boxes=jnp.concatenate([centres, jnp.full_like(centres, 0.4)], -1)[None],
            mask_logits=jnp.moveaxis(images, -1, 1) - 0.1,
            global_mask_logits=images.sum(-1) - 3,
            existence_logits=jnp.stack([light.sum(1) + 1, -light.sum(1)], -1),
            points=centres,
            point_map=jnp.zeros((len(images), 2, 2)),
        )


def config_of(data_dir: Path, **settings) -> Config:
    config = shapes_config.get_config()
    config.model.image_height = config.model.image_width = SIDE
    config.model.patch_size = SIDE // 4
    config.data.name, config.data.data_dir, config.data.num_eval_examples = "custom", str(data_dir), 0
    config.eval.batch_size, config.eval.score_threshold, config.eval.no_target_rule = 8, 0.7, "sigmoid"
    for name, value in settings.items():
        setattr(config.eval, name, value)
    return config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bytes(oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes(), "fixture")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """One sentence about the square, one about nothing, one about the square after a null annotation."""
    folder = tmp_path_factory.mktemp("evaluation")
    picture(folder / "images", PICTURE)
    about = [("a square", [annotation()]), ("nothing", [NULL]), ("the square", [NULL, annotation()])]
    records = [generalized(123, text, *objects, file_name=PICTURE) for text, objects in about]
    (folder / "instance.json").write_text(json.dumps({"val": records, "train": records}))
    prepare("custom", [folder / "instance.json"], folder / "images", folder / "data")
    return folder / "data"


# The square's mask covers 160 of the network's 1024 pixels, and exactly those of the resized truth. In the picture's own pixels
# it is 18 x 20, for the network's columns 6 to 15 are the picture's 12 to 29; the truth is 20 x 20 of 2400.
@pytest.mark.parametrize(
    ("protocol", "resolution", "ious"),
    [
        ("strict", "network", [1, 0, 1]),
        ("strict", "original", [0.9, 0, 0.9]),
        ("official", "network", [160 / 1024, 0, 0]),  # the mask of the dropped box, and a sentence that lost its object
        ("official", "original", [400 / 2400, 0, 0]),
    ],
)
def test_protocols_and_resolutions(prepared, tokenizer, protocol, resolution, ious):
    config = config_of(prepared, protocol=protocol, resolution=resolution)
    measured = evaluate(Square(), config, tokenizer, "val")
    np.testing.assert_allclose([measured.rows[i].iou for i in range(3)], ious, rtol=1e-6)
    hits = [1, 0, 1] if protocol == "strict" else [1, 0, 0]
    assert [measured.rows[i].f1 for i in range(3)] == hits
    assert measured.metrics["gIoU"] == pytest.approx(100 * sum(ious) / 3)
    assert measured.metrics["REC"] == 100
    assert protocol in conditions(config)
    assert ("own pixels" in conditions(config)) == (resolution == "original")


@pytest.mark.parametrize("protocol", ["official", "strict"])
@pytest.mark.parametrize("resolution", ["network", "original"])
def test_sweep_rows_are_the_evaluations_at_those_thresholds(prepared, tokenizer, protocol, resolution):
    settings = {"protocol": protocol, "resolution": resolution}
    swept = evaluate(Square(), config_of(prepared, **settings), tokenizer, "val", sweep=True)
    assert len(swept.sweep) == 19
    for threshold in (0.3, 0.7, 0.95):
        plain = evaluate(Square(), config_of(prepared, **settings, score_threshold=threshold), tokenizer, "val")
        assert swept.sweep[threshold] == {name: plain.metrics[name] for name in SWEPT}
    assert swept.sweep[0.7] == {name: swept.metrics[name] for name in SWEPT}


def test_best_thresholds(prepared, tokenizer):
    config = config_of(prepared, protocol="strict", score_threshold=0.62)
    swept = evaluate(Square(), config, tokenizer, "val", sweep=True).sweep
    assert len(swept) == 20
    assert swept[0.62] == pytest.approx({"F1": 200 / 3, "N_acc": 0, "T_acc": 100, "gIoU": 200 / 3})
    assert swept[0.3]["F1"] == 0
    assert best_thresholds(swept) == {"F1": 0.4, "N_acc": 0.9, "T_acc": 0.05, "gIoU": 0.4}


@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_coco_results(prepared, tokenizer, protocol, tmp_path, capsys):
    coco.write(
        tmp_path / "predictions.json", coco_entries(Square(), config_of(prepared, protocol=protocol), tokenizer, "val")
    )
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 123, "height": HEIGHT, "width": WIDTH}],
        "annotations": [{**annotation(), "image_id": 123, "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "meant"}],
    }
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "predictions.json"))
    found = loaded.loadAnns(loaded.getAnnIds(imgIds=[123]))
    assert [(entry["record"], entry["expression"]) for entry in found] == [
        (0, "a square"),
        (1, "nothing"),
        (2, "the square"),
    ]
    objects = [["7"], [], ["7"] if protocol == "strict" else []]
    assert [entry["target_ids"] for entry in found] == objects
    assert [entry["record_id"] for entry in found] == ["val[0]", "val[1]", "val[2]"]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:30, 12:30] = True
    for entry in found:
        np.testing.assert_allclose(entry["bbox"], [10, 10, 20, 20], rtol=1e-5)
        assert entry["score"] == pytest.approx(0.9, rel=1e-3)
        np.testing.assert_array_equal(coco_masks.decode(entry["segmentation"]), expected)


def test_coco_results_without_an_answer(prepared, tokenizer, tmp_path):
    entries = coco_entries(Square(), config_of(prepared, score_threshold=0.99), tokenizer, "val")
    coco.write(tmp_path / "predictions.json", entries)
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    always = config_of(prepared, score_threshold=0.99, task="refcoco")
    assert len(coco_entries(Square(), always, tokenizer, "val")) == 3


def test_image_ids():
    assert coco.image_id("train2014/COCO_train2014_000000000009.jpg") == 9
    assert coco.image_id("000000000154.jpg") == 154
    assert coco.image_id("pictures/street 7.png") == "pictures/street 7.png"


@pytest.mark.parametrize(
    ("settings", "split", "says"),
    [
        ({"protocol": "lenient"}, "val", r"eval\.protocol is 'lenient'; expected one of official, strict"),
        ({"resolution": "full"}, "val", r"eval\.resolution is 'full'; expected one of network, original"),
        (
            {"resolution": "original"},
            "train",
            "data.eval_splits contains 'train', a training split, whose sentences are drawn",
        ),
    ],
)
def test_bad_settings(prepared, tokenizer, settings, split, says):
    with pytest.raises(InputError, match=says):
        evaluate(Square(), config_of(prepared, **settings), tokenizer, split)


def test_a_training_split_can_be_measured(prepared, tokenizer):
    assert len(evaluate(Square(), config_of(prepared), tokenizer, "train").rows) == 3


def measured_on_shapes() -> dict:
    """Everything that an evaluation of 13 records in batches of 8 gives, as JSON values."""
    config = config_of(Path())
    config.data.name, config.data.num_eval_examples = "shapes", 13
    config.eval.score_threshold = 0.3
    tokenizer, mine = splits.load_tokenizer(config), []
    on_answer = collector(mine, open_eval_split(config, "val", tokenizer))
    measured = evaluate(Brightness(), config, tokenizer, "val", sweep=True, on_answer=on_answer)
    found = [entry for part in of_all(json.dumps(mine).encode()) for entry in json.loads(part)]
    found.sort(key=lambda entry: entry["record"])
    values = {
        "by_rule": [list(measured.by_rule[rule].result().values()) for rule in RULES],
        "rows": [list(row) for _, row in sorted(measured.rows.items())],
        "sweep": [list(row.values()) for row in measured.sweep.values()],
        "coco": [[e["record"], e["score"], *e["bbox"], e["segmentation"]["counts"]] for e in found],
    }
    return json.loads(json.dumps(values))


ON_DEVICES = """
import json, sys
import jax
address, devices, processes, process = sys.argv[1], *map(int, sys.argv[2:])
if processes > 1:
    jax.distributed.initialize(address, processes, process)
assert jax.device_count() == devices and jax.process_count() == processes
from tests.evaluation.test_evaluator import measured_on_shapes
print(json.dumps(measured_on_shapes()))
"""


def on_devices(devices: int, processes: int) -> list[dict]:
    """What each process says of `measured_on_shapes`, compiled as users' programs are: rounding is compared."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices // processes} --xla_cpu_multi_thread_eigen=false"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ON_DEVICES, address, *map(str, (devices, processes, process))],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize("processes", [1, 2])
def test_eight_devices_count_every_record_once(processes):
    """The last batch holds 5 records and 3 that fill it up."""
    (expected,) = on_devices(1, 1)
    assert len(expected["rows"]) == 13
    assert 0 < len(expected["coco"]) < 39
    for got in on_devices(8, processes):
        for name in ("by_rule", "rows", "sweep"):
            # an IoU of float32 boxes is exact to 1e-7 of the unit, not of itself
            np.testing.assert_allclose(
                np.array(got[name], float), np.array(expected[name], float), rtol=1e-6, atol=1e-6
            )
        assert [entry[0] for entry in got["coco"]] == [entry[0] for entry in expected["coco"]]
        assert [entry[-1] for entry in got["coco"]] == [entry[-1] for entry in expected["coco"]]
