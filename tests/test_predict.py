"""Asking a model about pictures, in Python and through the command line, with everything that users get wrong."""

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from instancevg_jax import checkpoint, predict
from instancevg_jax.answers import predictor
from instancevg_jax.answers.postprocess import Grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.config import Config, EvalConfig
from instancevg_jax.errors import InputError
from instancevg_jax.models.instancevg import InstanceVG
from tests import oracle
from tests.test_checkpoint import SMALL, random_params


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint of a very small network with random weights."""
    directory = tmp_path_factory.mktemp("checkpoints") / "model"
    spm = oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes()
    config = Config(model=SMALL, eval=EvalConfig(batch_size=4))
    checkpoint.save_checkpoint(directory, random_params(SMALL), config, spm, {"source": "a test"})
    return directory


@pytest.fixture(scope="module")
def asked(saved: Path) -> Predictor:
    return Predictor.from_pretrained(saved)


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same(a: Grounding, b: Grounding) -> None:
    """Equal but for the rounding of another batch size."""
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3)
    np.testing.assert_array_equal(a.points_xy, b.points_xy)
    assert np.mean(a.mask != b.mask) < 0.01


# ---- Python -------------------------------------------------------------------------------------------------------


def test_the_answer_is_in_the_pictures_own_pixels(asked: Predictor):
    answer = asked.predict(picture(40, 60), "the left dog", score_threshold=0.0)
    count = SMALL.num_queries
    assert answer.boxes_xyxy.shape == (count, 4)
    assert answer.scores.shape == (count,)
    assert answer.masks.shape == (count, 40, 60)
    assert answer.mask.shape == (40, 60)
    assert (np.diff(answer.scores) <= 0).all()
    assert (answer.boxes_xyxy >= 0).all()
    assert (answer.boxes_xyxy <= [60, 40, 60, 40]).all()
    assert answer.exists
    assert 0 <= answer.no_target_probability <= 1


def test_nothing_above_the_threshold_is_no_target(asked: Predictor):
    answer = asked.predict(picture(), "the left dog", score_threshold=1.0)
    assert not answer.exists
    assert answer.boxes_xyxy.shape == (0, 4)
    assert answer.masks.shape == (0, 40, 60)
    assert not answer.mask.any()


def test_paths_pil_images_and_arrays_give_the_same(asked: Predictor, tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    sources = [picture(), Image.fromarray(picture()), tmp_path / "a.png", str(tmp_path / "a.png")]
    answers = [asked.predict(source, "the dog", 0.0) for source in sources]
    for answer in answers[1:]:
        for one, other in zip(vars(answers[0]).values(), vars(answer).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_batch_answers_as_its_parts(asked: Predictor):
    pictures = [picture(40, 60), picture(30, 20, seed=1), picture(7, 9, seed=2)]
    expressions = ["the dog", "two cats on the left", "a bus"]
    answers = asked.predict_batch(pictures, expressions, 0.0)
    assert len(answers) == 3
    assert asked.predict_batch([], []) == []
    for answer, rgb, expression in zip(answers, pictures, expressions, strict=True):
        assert answer.mask.shape == rgb.shape[:2]
        assert_same(answer, asked.predict(rgb, expression, 0.0))


def test_one_compilation_per_batch_size(asked: Predictor, monkeypatch: pytest.MonkeyPatch):
    """Compiling runs the network's Python code, an answer from the compiled network does not: count its calls."""
    asked.predict(picture(), "the dog")
    asked.predict_batch([picture()] * 4, ["the dog"] * 4)
    traced = []
    network = InstanceVG.__call__
    monkeypatch.setattr(InstanceVG, "__call__", lambda self, *args: traced.append(len(args[0])) or network(self, *args))
    for i, expression in enumerate(["two cats and a bus", "left " * 50, "人"]):
        asked.predict(picture(20 + i, 30, seed=i), expression, score_threshold=i / 10)
    asked.predict_batch([picture()] * 3, ["a cat"] * 3)
    asked.predict_batch([picture()] * 7, ["a cat"] * 7)  # four and three
    assert traced == []
    text = np.zeros((2, SMALL.max_tokens), np.int32)
    jax.eval_shape(asked._forward, asked._state, np.zeros((2, 32, 32, 3), np.float32), text, text == 0)
    assert traced == [2]  # the counter does count: this size is new


def test_a_predictor_cannot_be_changed(asked: Predictor):
    with pytest.raises(AttributeError):
        asked.config = Config()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([picture()], ["a", "b"]), "1 pictures and 2 expressions"),
        (([picture()], [""]), "contains no words"),
        (([picture()], ["\u200b"]), "gives no tokens"),
        ((["nowhere.jpg"], ["a"]), r"nowhere\.jpg: no such file"),
        (([picture()], ["a"], 1.5), r"score_threshold is 1\.5"),
        (([picture()], ["a"], float("nan")), "score_threshold is nan"),
    ],
)
def test_bad_questions(asked: Predictor, arguments: tuple, says: str):
    with pytest.raises(InputError, match=says):
        asked.predict_batch(*arguments)


def test_a_tokenizer_of_another_model_is_refused(asked: Predictor, saved: Path):
    config = Config(model=dataclasses.replace(SMALL, vocab_size=100))
    model, _ = checkpoint.load_model(saved)
    with pytest.raises(InputError, match=r"the tokenizer has 112 ids, model\.vocab_size is 100"):
        Predictor.from_model(model, config, asked.tokenizer)


def test_without_a_checkpoint_the_demo_model_answers(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(predictor, "DEMO_CHECKPOINT", saved)
    assert Predictor.from_pretrained().config.model == SMALL
    monkeypatch.setattr(predictor, "DEMO_CHECKPOINT", tmp_path / "nowhere")
    with pytest.raises(InputError, match="comes without the demo checkpoint"):
        Predictor.from_pretrained()


# ---- command line -------------------------------------------------------------------------------------------------


def kinds_of_pictures(folder: Path) -> dict[str, tuple[int, int]]:
    """Files of every kind that must work, with the (height, width) that a viewer shows."""
    rgb = Image.fromarray(picture(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    Image.fromarray(np.dstack([picture(40, 60), picture(40, 60, seed=1)[..., 0]])).save(folder / "alpha.png")
    cv2.imwrite(str(folder / "deep.png"), picture(40, 60).astype(np.uint16) * 257)
    Image.fromarray(picture(1, 1)).save(folder / "dot.png")
    names = ("grey.jpg", "cmyk.jpg", "palette.png", "alpha.png", "deep.png")
    return {**dict.fromkeys(names, (40, 60)), "rotated.jpg": (60, 40), "dot.png": (1, 1)}


def test_every_kind_of_picture_through_the_command(
    asked: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Also: JSON on stdout, masks that decode, a sentence in another script with an emoji, one drawing a picture."""
    sizes = kinds_of_pictures(tmp_path)
    files = [str(tmp_path / name) for name in sizes]
    out = tmp_path / "answers"
    monkeypatch.setattr(Predictor, "from_pretrained", lambda directory: asked)
    command = ["--image", *files, "--expression", "左边的 🐶 dog", "--output", str(out)]
    predict.main([*command, "--json", "--score-threshold", "0"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["expression"] == "左边的 🐶 dog"
    assert [result["image"] for result in printed["results"]] == files
    for result, size in zip(printed["results"], sizes.values(), strict=True):
        assert (result["height"], result["width"]) == size
        assert result["exists"]
        assert 0 <= result["no_target_probability"] <= 1
        assert len(result["objects"]) == SMALL.num_queries
        for found in result["objects"]:
            assert len(found["box_xyxy"]) == 4
            assert coco_masks.decode(found["mask"]).shape == size
    assert sorted(path.stem for path in out.iterdir()) == sorted(Path(name).stem for name in sizes)
    for path in out.iterdir():
        assert max(cv2.imread(str(path)).shape) >= 480


def test_the_command_says_what_python_says(
    asked: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """One answer, as text and as JSON; the sentence is longer than the model reads, and the user is told."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(Predictor, "from_pretrained", lambda directory: asked)
    command = ["--image", str(tmp_path / "a.png"), "--expression", "left " * 60, "--score-threshold", "0"]
    predict.main([*command, "--json"])
    captured = capsys.readouterr()
    assert captured.err == f"note: the expression has 60 tokens; the model reads the first {SMALL.max_tokens - 2}\n"
    (result,) = json.loads(captured.out)["results"]
    answer = asked.predict(picture(), "left " * 60, 0.0)
    for found, box, score, mask in zip(result["objects"], answer.boxes_xyxy, answer.scores, answer.masks, strict=True):
        np.testing.assert_allclose(found["box_xyxy"], box, rtol=1e-6)
        assert found["score"] == pytest.approx(float(score))
        np.testing.assert_array_equal(coco_masks.decode(found["mask"]), mask)
    np.testing.assert_array_equal(coco_masks.decode(result["mask"]), answer.mask)
    predict.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'a.png'}: {SMALL.num_queries} found")
    assert lines[1].startswith(f"  score {answer.scores[0]:.3f}  box ")


def test_bad_pictures_are_named(saved: Path, tmp_path: Path):
    """In a process of its own the message is one line and the exit status 2; here, the error that it comes from."""
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(data.getvalue()[:-200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    for name, says in [
        ("missing.jpg", "no such file"),
        ("truncated.jpg", "truncated"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not a picture"),
        ("", "is a directory"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            predict.main(["--checkpoint", str(saved), "--image", str(tmp_path / name), "--expression", "a dog"])
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("text", ["", "   ", "-", "?!"])
def test_an_empty_expression_is_named(text: str):
    with pytest.raises(InputError, match="contains no words"):
        predict.main(["--image", "a.jpg", "--expression", text])


@pytest.mark.parametrize(
    ("output", "images", "says"),
    [
        ("a.png", ["x.png", "y.png"], "one file for 2 pictures"),
        ("a.gif", ["x.png"], r"cannot write \.gif"),
        ("x.png", ["x.png"], r"would overwrite x\.png"),
        ("x.png/deep", ["y.png"], r"x\.png is a file"),
    ],
)
def test_bad_outputs_are_named(output: str, images: list[str], says: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "y.png"):
        Image.fromarray(picture()).save(name)
    with pytest.raises(InputError, match=says):
        predict.main(["--image", *images, "--expression", "a dog", "--output", output])


def test_pictures_of_one_name_do_not_overwrite_each_other(tmp_path: Path):
    paths = predict._output_paths(str(tmp_path), ["a/x.jpg", "b/x.jpg", "b/y.jpg"])
    assert [path.name for path in paths] == ["x-1.png", "x-2.png", "y.png"]


def test_bad_checkpoints_are_named(saved: Path, tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    half, other = tmp_path / "half", tmp_path / "other"
    shutil.copytree(saved, half)
    (half / "params" / "manifest.ocdbt").unlink()
    shutil.copytree(saved, other)
    (other / "config.json").write_text(
        (other / "config.json").read_text().replace('"head_width": 16', '"head_width": 24')
    )
    for directory, says in [
        (tmp_path / "nowhere", "no such directory"),
        (half, "not a whole checkpoint"),
        (other, r"config\.json does not fit the parameters"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            predict.main(["--checkpoint", str(directory), "--image", str(tmp_path / "a.png"), "--expression", "a dog"])
        assert str(directory) in str(caught.value)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "instancevg_jax.predict", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_as_a_process(saved: Path, tmp_path: Path):
    """Exit status and streams: a right question, then a wrong file, then wrong usage."""
    Image.fromarray(picture()).save(tmp_path / "a.png")
    right = ["--checkpoint", str(saved), "--image", str(tmp_path / "a.png"), "--expression", "a dog"]
    done = run(*right, "--output", str(tmp_path / "out.png"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "a.png"))
    assert max(cv2.imread(str(tmp_path / "out.png")).shape) >= 480
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "out.png"]

    done = run("--checkpoint", str(tmp_path / "nowhere"), *right[2:])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'nowhere'}: no such directory; expected a checkpoint (config.json, tokenizer.spm, params/)"
    ]

    odd = os.fsdecode(bytes(tmp_path / "a") + b"\xff.png")
    shutil.copy(tmp_path / "a.png", odd)
    done = run("--checkpoint", str(saved), "--image", odd, "--expression", "a dog", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["image"] == odd

    done = run(*right[:-1], os.fsdecode(b"\xffred"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(r"error: the expression '\udcffred' is not valid UTF-8; expected a sentence")

    done = run("--image", "a.png")
    assert done.returncode == 2
    assert "--expression" in done.stderr
