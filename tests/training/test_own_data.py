"""`instancevg train --data`: what is chosen for somebody's own annotations, what is refused, and the way to an answer."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from convert import hub
from data_pipelines.annotations import jsonl
from data_pipelines.prepared.sources import Prepared
from data_pipelines.shapes.dataset import TOKENIZER_PATH, ShapesDataset
from instancevg_jax import predict, train
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.checkpoint import load_model
from instancevg_jax.errors import InputError
from instancevg_jax.training import own_data
from tests.test_train import SMALL

SETTINGS = {"data.tokenizer": str(TOKENIZER_PATH)}


def drawn(folder: Path, count: int, **changes) -> Path:
    """Annotations with boxes only of `count` drawn scenes, each with two sentences for its objects. `changes`: of every record."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    lines, scenes = [], ShapesDataset("train", "basic", (48, 64))
    for number in range(count):
        scene = scenes[number]
        cv2.imwrite(str(folder / "pictures" / f"{number}.png"), np.ascontiguousarray(scene.image[..., ::-1]))
        objects = [{"box": scene.boxes_xyxy[i].tolist()} for i in scene.referents]
        record = {"image": f"{number}.png", "expressions": [scene.expression, f"find {scene.expression}"]}
        lines.append({**record, "objects": objects, **changes})
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def planned(path: Path, start: Path | None = DEMO_CHECKPOINT, **settings):
    """Records and config of a plan for the annotations at `path`."""
    own = own_data.read(path, path.parent / "pictures")
    return own_data.plan(own, own_data.initial_settings(start), path.parent / "run", settings)


def with_splits(path: Path, *splits: str) -> Path:
    """The same file with the records dealt out to `splits`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    dealt = [line | {"split": splits[i % len(splits)]} for i, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in dealt))
    return path


def test_without_a_validation_split_pictures_are_held_out(tmp_path, capsys):
    """A tenth of the pictures with all their sentences, one record per sentence, and the same ones whatever the order."""
    path = drawn(tmp_path, 20)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines]) + "\n")
    records, config = planned(path)
    held = {r.picture for r in records if r.split == "val"}
    assert len(held) == 2
    assert not held & {r.picture for r in records if r.split == "train"}
    assert [len(r.expressions) for r in records if r.split == "val"] == [1] * 8
    assert sum(len(r.expressions) for r in records) == 80
    assert (config.data.validation_splits, config.data.eval_splits) == (("val",), ("val",))
    assert "2 of 20 pictures are held out as 'val'" in capsys.readouterr().out
    path.write_text("\n".join(reversed(lines)) + "\n")
    assert {r.picture for r in planned(path)[0] if r.split == "val"} == held


@pytest.mark.parametrize(
    ("splits", "validation", "evaluated"),
    [
        (("train", "val"), ("val",), ("val",)),
        (("train", "test", "validation"), ("validation",), ("validation", "test")),
        (("train", "test"), ("val",), ("val", "test")),
        (("training", "dev"), ("dev",), ("dev",)),
    ],
)
def test_splits_are_found_in_the_data(tmp_path, splits, validation, evaluated):
    records, config = planned(with_splits(drawn(tmp_path, 20), *splits))
    assert (config.data.train_split, config.data.validation_splits, config.data.eval_splits) == (
        splits[0],
        validation,
        evaluated,
    )
    assert {r.split for r in records} == {splits[0], *evaluated}


def test_the_settings_are_those_of_the_model_and_of_the_amount_of_data(tmp_path, capsys):
    _, config = planned(drawn(tmp_path, 20))
    _, origin = load_model(DEMO_CHECKPOINT)
    assert (config.model.width, config.eval.no_target_rule) == (origin.model.width, origin.eval.no_target_rule)
    assert (config.data.name, config.eval.protocol) == ("custom", "strict")
    assert (Path(config.model.pretrained), Path(config.data.tokenizer).parent) == (DEMO_CHECKPOINT, DEMO_CHECKPOINT)
    assert config.optim.learning_rate < origin.optim.learning_rate
    # 18 records are 2 batches: 50 passes make 100 steps, after each of which the model is validated
    assert (config.train.num_epochs, config.train.eval_every_epochs, config.optim.decay_epochs) == (250, 50, (200,))
    assert (config.loss.dice, config.loss.bce, config.train.best_metric) == (0, 0, "F1")
    assert "boxes only: the losses of masks are off" in capsys.readouterr().out


def test_settings_take_precedence_over_what_is_chosen(tmp_path):
    path = with_splits(drawn(tmp_path, 20), "train", "test")
    settings = {"loss.dice": 0.5, "train.num_epochs": 3, "data.eval_splits": ("test",), "train.batch_size": 2}
    records, config = planned(path, **settings)
    assert (config.loss.dice, config.loss.bce, config.train.num_epochs) == (0.5, 0, 3)
    assert (config.data.eval_splits, {r.split for r in records}) == (("test",), {"train", "test"})
    assert config.train.eval_every_epochs == 20  # 10 records are 5 batches of 2
    records, config = planned(path, **{"data.eval_splits": ("val", "test")})
    assert (config.data.eval_splits, {r.split for r in records}) == (("val", "test"), {"train", "val", "test"})


def test_from_scratch_masks_are_learned_as_boxes(tmp_path, capsys):
    _, config = planned(drawn(tmp_path, 20), None, **SETTINGS)
    assert (config.model.pretrained, config.loss.dice, config.train.best_metric) == ("", 1, "F1")
    assert "masks are learned as filled boxes" in capsys.readouterr().out


def test_an_object_without_a_mask_among_others_is_counted(tmp_path, capsys):
    path = with_splits(drawn(tmp_path, 20), "train", "val")
    polygon = [[5, 5, 20, 5, 20, 20]]
    objects = [{"box": [5, 5, 20, 20], "mask": polygon}, {"box": [5, 5, 30, 30]}]
    line = {"image": "0.png", "expressions": "both", "objects": objects}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    count = sum(len(r.instances) for r in jsonl_records(path) if r.split == "train")
    config = planned(path)[1]
    assert f"{count - 1} of {count} objects have no mask" in capsys.readouterr().out
    assert (config.loss.dice, config.train.best_metric) == (1, "")


@pytest.mark.parametrize(
    ("splits", "settings", "says"),
    [
        (("train1", "train2"), {}, "2 training splits .train1, train2.; choose one with --config.data.train_split"),
        (("mine",), {}, "no training split: expected a name that starts with 'train', found mine"),
        (("train",), {"data.name": "grefcoco"}, "data.name is 'grefcoco'; your own data are prepared as 'custom'"),
        (("train",), {"train.epochs": 3}, "train.epochs: no such field"),
        (("train",), {"train.num_epochs": "3"}, "train.num_epochs is '3'; expected int"),
    ],
)
def test_what_cannot_be_planned_is_one_line(tmp_path, splits, settings, says):
    path = with_splits(drawn(tmp_path, 4), *splits)
    with pytest.raises(InputError, match=says):
        planned(path, **settings)


def test_a_single_picture_cannot_be_held_out(tmp_path):
    with pytest.raises(InputError, match="one picture only, and no validation split"):
        planned(drawn(tmp_path, 1))


def command(path: Path, *more: str) -> list[str]:
    return ["--data", str(path), "--images", str(path.parent / "pictures"), "--from=built-in", *more]


def test_faults_end_the_command_with_the_one_that_lists_them(tmp_path):
    path = drawn(tmp_path, 4)
    (tmp_path / "pictures" / "2.png").unlink()
    with path.open("a") as file:
        file.write('{"image": "1.png", "expressions": "", "objects": []}\n{"image": "1.png", "expressions": "a"}\n')
    with pytest.raises(InputError) as caught:
        train.main(command(path, f"--workdir={tmp_path / 'run'}"))
    said = str(caught.value)
    assert "\n" not in said
    assert "1 x missing picture (the first: 2.png: " in said
    assert "1 x unreadable record (the first: " in said
    assert f"`instancevg check custom --annotations {path} --images {path.parent / 'pictures'} --tokenizer" in said
    assert "--list faults.jsonl` lists all" in said
    assert not (tmp_path / "run" / "state").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--data=a.jsonl"], "--data needs --images"),
        (["--data=a.jsonl", "--images=.", "--config=custom"], "--data chooses the settings itself"),
        (["--config=shapes", "--workdir=x", "--from=y"], "--from belongs to --data"),
        (["--data=absent.jsonl", "--images=."], "absent.jsonl: no such file"),
        (["--data=absent.jsonl", "--images=absent"], "absent: no such folder; expected the pictures"),
        (
            ["--data=a.jsonl", "--images=.", "--from=nothing"],
            "nothing: no such file or directory; expected a path, built-in, or",
        ),
        (["--data=a.jsonl", "--images=.", "--config.train.epochs=3"], "train.epochs: no such field"),
        (["--data=a.jsonl", "--images=.", "--distributed=auto"], "--data prepares data on one machine"),
        (["--data=a.jsonl", "--images=."], "needs a tokenizer: .*, such as BEiT-3's, from http://127"),
    ],
)
def test_bad_command_lines_are_one_line(argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTANCEVG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "TOKENIZER_URL", "http://127.0.0.1:9/beit3.spm")
    drawn(tmp_path, 3).rename("a.jsonl")
    with pytest.raises(InputError, match=says):
        train.main(argv)


def test_a_run_does_not_overwrite_the_model_that_it_starts_from(tmp_path):
    path = drawn(tmp_path, 4)
    with pytest.raises(InputError, match=r"--from .* is inside --workdir"):
        train.main(command(path, f"--workdir={DEMO_CHECKPOINT.parent}"))


def test_what_is_prepared_is_what_was_planned(tmp_path, monkeypatch, capsys):
    """All but the training itself. The second time nothing is written, and other data are refused in the folder of a run."""
    trained = []
    monkeypatch.setattr(own_data, "train", lambda *arguments: trained.append(arguments[0]))
    path, run = drawn(tmp_path, 20), tmp_path / "run"
    train.main(command(path, f"--workdir={run}", "--config.train.num_epochs=2"))
    train.main(command(path, f"--workdir={run}", "--config.train.num_epochs=2"))
    assert trained[0] == trained[1]
    assert trained[0].train.num_epochs == 2
    printed = capsys.readouterr().out
    assert "note: 20 x words unknown to the tokenizer (the first: my.jsonl line 1: find in " in printed
    assert f"{run / 'prepared'}: prepared before" in printed
    splits = {split: Prepared(run / "prepared", "custom", split) for split in ("train", "val")}
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "val": 4}
    (run / "state").mkdir()
    jsonl.write(path, jsonl_records(path)[:-1])
    with pytest.raises(InputError, match="holds a run on other records or pictures; choose another --workdir"):
        train.main(command(path, f"--workdir={run}"))


def jsonl_records(path: Path):
    return own_data.read(path, path.parent / "pictures").records


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("start", [DEMO_CHECKPOINT, None])
def test_from_annotations_to_an_answer(tmp_path, start, capsys):
    """One command trains on boxes alone; the same command again has nothing left to do; the model answers."""
    path, run = drawn(tmp_path, 40), tmp_path / "run"
    sizes = [] if start else [*SMALL[1:13], "--config.model.vocab_size=64", f"--config.data.tokenizer={TOKENIZER_PATH}"]
    arguments = ["--data", str(path), "--images", str(tmp_path / "pictures"), f"--workdir={run}", *sizes]
    arguments += [f"--from={start}"] if start else []
    arguments += ["--config.train.num_epochs=4", "--config.train.eval_every_epochs=2", "--config.train.batch_size=8"]
    train.main(arguments)
    printed = capsys.readouterr().out
    assert "4 of 40 pictures are held out" in printed
    assert "best F1" in printed
    assert f"try it: instancevg predict --checkpoint {run} --image" in printed
    config = load_model(run / "best")[1]
    assert (config.data.name, config.model.width) == ("custom", 128 if start else 16)
    train.main(arguments)
    assert "resuming from step 20" in capsys.readouterr().out
    asked = ["--image", str(tmp_path / "pictures" / "0.png"), "--expression", "the red circle"]
    predict.main(["--checkpoint", str(run), *asked, "--output", str(tmp_path / "answer.png")])
    assert (tmp_path / "answer.png").stat().st_size > 1000
