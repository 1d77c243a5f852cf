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
from instancevg_jax.answers.grounding import Grounding
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.answers.questions import Question, output_paths
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


def test_every_kind_of_source_gives_the_same(asked: Predictor, tmp_path: Path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    sources = [
        picture(),
        Image.fromarray(picture()),
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        io.BytesIO(data),
    ]
    sources.append(jax.numpy.asarray(picture()))
    answers = [asked.predict(source, "the dog", score_threshold=0.0) for source in sources]
    for answer in answers[1:]:
        for name in ("boxes_xyxy", "scores", "masks", "points_xy", "mask", "picture"):
            np.testing.assert_array_equal(getattr(answers[0], name), getattr(answer, name))


def test_a_batch_answers_as_its_parts(asked: Predictor):
    pictures = [picture(40, 60), picture(30, 20, seed=1), picture(7, 9, seed=2)]
    expressions = ["the dog", "two cats on the left", "a bus"]
    answers = asked.predict_batch(list(zip(pictures, expressions, strict=True)), score_threshold=0.0)
    assert len(answers) == 3
    assert asked.predict_batch([]) == []
    for answer, rgb, expression in zip(answers, pictures, expressions, strict=True):
        assert answer.mask.shape == rgb.shape[:2]
        assert_same(answer, asked.predict(rgb, expression, score_threshold=0.0))


def test_two_programs_serve_every_question(asked: Predictor, saved: Path, monkeypatch: pytest.MonkeyPatch):
    """Compiling runs the network's Python code, an answer from the compiled network does not: count its calls."""
    asked.predict(picture(), "the dog")
    asked.predict_batch([(picture(), "the dog")] * 4)
    traced = []
    network = InstanceVG.forward
    monkeypatch.setattr(InstanceVG, "forward", lambda self, *args: traced.append(len(args[0])) or network(self, *args))
    for i, expression in enumerate(["two cats and a bus", "left " * 50, "人"]):
        settings = {"score_threshold": i / 10, "nms_threshold": i / 5, "top_k": i + 1, "mask": "global"}
        asked.predict(picture(20 + i, 30, seed=i), expression, **settings)
    asked.predict(picture(), ["a cat", "a dog", "a bus"], mask="instance")  # padded to four
    asked.predict_batch([(picture(), "a cat")] * 9)  # two times four, and one
    Predictor.from_pretrained(saved).predict(picture(), "the dog")  # another predictor of the same architecture
    assert traced == []
    Predictor.from_pretrained(saved, batch_size=3).predict_batch([(picture(), "a dog")] * 3)
    assert traced == [3]  # the counter does count: this size is new


def test_settings_do_what_they_say(asked: Predictor):
    everything = asked.predict(picture(), "the left dog", score_threshold=0.0)
    best = asked.predict(picture(), "the left dog", score_threshold=0.0, top_k=1, mask="instance")
    assert len(best) == 1
    np.testing.assert_array_equal(best.boxes_xyxy, everything.boxes_xyxy[:1])
    np.testing.assert_array_equal(best.mask, best.masks[0])
    assert len(asked.predict(picture(), "the left dog", score_threshold=0.0, nms_threshold=1e-6)) < len(everything)
    threshold = float(everything.scores[1])
    assert len(asked.predict(picture(), "the left dog", score_threshold=threshold)) == 1


def test_a_refcoco_model_may_find_nothing(asked: Predictor):
    """As in the original's demo. `always_answer` is the rule of REC, by which `evaluate` measures."""
    config = dataclasses.replace(asked.config, eval=EvalConfig(task="refcoco", batch_size=4))
    refcoco = dataclasses.replace(asked, config=config)
    nothing = refcoco.predict(picture(), "the left dog", score_threshold=1.0)
    assert not nothing
    assert not nothing.mask.any()
    (answer,) = refcoco.predict_batch([(picture(), "the left dog")], score_threshold=1.0, always_answer=True)
    assert len(answer) == 1
    assert answer.scores[0] == pytest.approx(nothing.best_score)


def test_a_stream_continues_past_what_cannot_be_answered(asked: Predictor, tmp_path: Path):
    """In order, and no further ahead than the batches that run and the pictures that are read."""
    taken = []

    def pairs():
        for i in range(60):
            taken.append(i)
            yield (tmp_path / "missing.jpg" if i % 3 == 1 else picture(seed=i), "" if i % 3 == 2 else "a dog")
        yield np.zeros((9, 9, 3))

    answers = asked.predict_many(pairs(), score_threshold=0.0)
    first = [next(answers) for _ in range(3)]
    assert len(taken) < 50
    assert_same(first[0], asked.predict(picture(seed=0), "a dog", score_threshold=0.0))
    rest = [*first, *answers]
    assert len(rest) == 61
    assert [isinstance(answer, InputError) for answer in rest] == [i % 3 != 0 for i in range(60)] + [True]
    assert "missing.jpg: no such file" in str(rest[1])
    assert "words" in str(rest[2])
    assert "expected (picture, sentence)" in str(rest[60])
    assert not any("\n" in str(answer) for answer in rest)


def test_a_picture_is_read_once_for_several_sentences(
    asked: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    read = []
    load = predictor.load_picture
    monkeypatch.setattr(predictor, "load_picture", lambda source: read.append(source) or load(source))
    answers = asked.predict(str(tmp_path / "a.png"), ["a dog", "a cat", "a bus"])
    assert [answer.expression for answer in answers] == ["a dog", "a cat", "a bus"]
    assert len(read) == 1


def test_a_device_without_memory_says_what_to_change(asked: Predictor, monkeypatch: pytest.MonkeyPatch):
    def answer(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 26614369432 bytes.")

    monkeypatch.setattr(predictor, "_answer", answer)
    with pytest.raises(InputError, match="out of memory for 4 pictures at a time; use a batch size below 4"):
        asked.predict_batch([(picture(), "a dog")] * 4)


def test_a_predictor_cannot_be_changed(asked: Predictor):
    with pytest.raises(AttributeError):
        asked.config = Config()


@pytest.mark.parametrize(
    ("source", "expression", "settings", "says"),
    [
        (picture(), "", {}, "words"),
        (picture(), 5, {}, "the expression is 5"),
        (picture(), b"a dog", {}, "the expression is b'a dog'"),
        (picture(), ["a", 5], {}, "the expression is 5"),
        ("nowhere.jpg", "a", {}, r"nowhere\.jpg: no such file"),
        (5, "a", {}, "the picture is"),
        (None, "a", {}, "the picture is"),
        (b"hello", "a", {}, "not a picture"),
        (picture(), "a", {"score_threshold": 1.5}, r"score_threshold is 1\.5"),
        (picture(), "a", {"score_threshold": float("nan")}, "score_threshold is nan"),
        (picture(), "a", {"score_threshold": "0.5"}, "score_threshold is '0.5'"),
        (picture(), "a", {"nms_threshold": -1}, "nms_threshold is -1"),
        (picture(), "a", {"top_k": 0}, "top_k is 0"),
        (picture(), "a", {"mask": "both"}, "'both'; expected one of"),
    ],
)
def test_bad_questions(asked: Predictor, source, expression, settings: dict, says: str):
    with pytest.raises(InputError, match=says):
        asked.predict(source, expression, **settings)


def test_a_tokenizer_of_another_model_is_refused(asked: Predictor, saved: Path):
    config = Config(model=dataclasses.replace(SMALL, vocab_size=100))
    model, _ = checkpoint.load_model(saved)
    with pytest.raises(InputError, match=r"the tokenizer has 112 ids, model\.vocab_size is 100"):
        Predictor.from_model(model, config, asked.tokenizer)


def test_without_a_checkpoint_the_demo_model_answers(saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(predictor, "DEMO_CHECKPOINT", saved)
    assert Predictor.from_pretrained().config.model == SMALL
    monkeypatch.setattr(predictor, "DEMO_CHECKPOINT", tmp_path / "nowhere")
    with pytest.raises(InputError, match="lacks the built-in model"):
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
    monkeypatch.setattr(Predictor, "from_pretrained", lambda source, batch_size: asked)
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
    monkeypatch.setattr(Predictor, "from_pretrained", lambda source, batch_size: asked)
    command = ["--image", str(tmp_path / "a.png"), "--expression", "left " * 60, "--score-threshold", "0"]
    predict.main([*command, "--json"])
    captured = capsys.readouterr()
    assert captured.err == f"note: the expression has 60 tokens; the model reads the first {SMALL.max_tokens - 2}\n"
    (result,) = json.loads(captured.out)["results"]
    answer = asked.predict(picture(), "left " * 60, score_threshold=0.0)
    for found, box, score, mask in zip(result["objects"], answer.boxes_xyxy, answer.scores, answer.masks, strict=True):
        np.testing.assert_allclose(found["box_xyxy"], box, rtol=1e-6)
        assert found["score"] == pytest.approx(float(score))
        np.testing.assert_array_equal(coco_masks.decode(found["mask"]), mask)
    np.testing.assert_array_equal(coco_masks.decode(result["mask"]), answer.mask)
    predict.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'a.png'}: {'left ' * 60!r}: {SMALL.num_queries} objects"
    assert lines[1].startswith(f"  score {answer.scores[0]:.3f}  box ")


def test_folders_lists_and_failures(
    asked: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Every picture of a folder with every sentence, then the same as a list; bad pictures are listed at the end."""
    monkeypatch.setattr(Predictor, "from_pretrained", lambda source, batch_size: asked)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        Image.fromarray(picture()).save(folder / name)
    (folder / "b.png").write_text("hello")
    wanted = ["--explain", str(tmp_path / "why"), "--masks", str(tmp_path / "masks"), "--score-threshold", "0"]
    with pytest.raises(SystemExit) as ended:
        predict.main(["--image", str(folder), "--expression", "the dog", "two Ж", *wanted, "--format", "jsonl"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    results = [json.loads(line) for line in captured.out.splitlines()]
    pairs = [(str(folder / name), text) for name in ("a.png", "b.png", "c.png") for text in ("the dog", "two Ж")]
    assert [(result["image"], result["expression"]) for result in results] == pairs
    assert ["error" in result for result in results] == [False, False, True, True, False, False]
    assert "error: 2 of 6 questions failed:" in captured.err
    assert captured.err.count(f"{folder / 'b.png'}: not a picture") == 2
    assert captured.err.count("note: the model never saw: ж") == 1
    for result in (result for result in results if "error" not in result):
        assert cv2.imread(result["explanation"]).shape[0] > 500
        mask = cv2.imread(str(Path(result["mask_folder"]) / "mask.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(mask > 0, coco_masks.decode(result["mask"]))
        assert len(list(Path(result["mask_folder"]).iterdir())) == 1 + len(result["objects"])

    listed = folder / "pairs.jsonl"
    listed.write_text(
        "".join(json.dumps({"image": Path(image).name, "expression": text}) + "\n" for image, text in pairs)
    )
    with pytest.raises(SystemExit):
        predict.main(["--list", str(listed), "--format", "jsonl", "--score-threshold", "0"])
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result.get("objects") for result in again] == [result.get("objects") for result in results]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "a.png"], "nothing to ask"),
        (["--list", "a.csv", "--image", "a.png"], "--list replaces"),
        (["--list", "a.csv", "--expression", "a"], "--list replaces"),
    ],
)
def test_what_to_ask_is_named_one_way(arguments: list[str], says: str):
    with pytest.raises(InputError, match=says):
        predict.main(arguments)


def test_bad_pictures_are_named(saved: Path, tmp_path: Path):
    """In a process of its own the message is one line and the exit status 2; here, the error that it comes from."""
    data = io.BytesIO()
    Image.fromarray(picture()).save(data, "JPEG")
    (tmp_path / "truncated.jpg").write_bytes(data.getvalue()[:-200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, says in [
        ("missing.jpg", "no such file"),
        ("truncated.jpg", "truncated"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "not a picture"),
        ("empty", "no pictures found"),
        ("*.gif", "no pictures found"),
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
        ("a.png", ["x.png", "y.png"], "one file for 2 answers"),
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
    images = ["a/x.jpg", "b/x.jpg", "b/y.jpg", "b/x-1.jpg"]
    paths = output_paths("--output", str(tmp_path), [Question(image, "a dog") for image in images])
    assert [path.name for path in paths] == ["x-2.png", "x-3.png", "y.png", "x-1.png"]


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
        (tmp_path / "nowhere", "no such file or directory; expected a path, built-in, or one of instancevg-g"),
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
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: {tmp_path / 'nowhere'}: no such file or directory; expected a path, built-in, or one of "
    )

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
