"""The commands, in the process: official layouts in, checkpoint directories out, and back."""

import dataclasses
import hashlib
import json
import sys

import numpy as np
import pytest
from flax import nnx

from benchmarks.convert import make_tokenizer
from convert import __main__ as command
from convert import export, hub, official, rules
from convert.instancevg import TABLE
from convert.rules import Ignore, classify
from convert.torch_file import reader, writer
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import load_model, load_pretrained, load_provenance, load_tokenizer
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.positions import resize_positions
from tests import oracle

OFFICIAL = {
    "tiny": configs.tiny(),
    "tiny1": dataclasses.replace(configs.tiny(), num_queries=1),
    "grefcoco": configs.base(),
    "refcoco_base": dataclasses.replace(configs.base(), num_queries=1),
    "refcoco_large": dataclasses.replace(configs.large(), num_queries=1),
}


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
    command.main()


@pytest.fixture
def tokenizer(tmp_path):
    """As many ids as the tiny model has rows."""
    make_tokenizer(tmp_path / "tiny.spm", 256)
    return tmp_path / "tiny.spm"


@pytest.fixture
def options(tmp_path, tokenizer):
    """--config and --tokenizer of the tiny model."""
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(Config(model=configs.tiny())))
    return ["--config", path, "--tokenizer", tokenizer]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("refcoco") else n for n in OFFICIAL]
)
def test_every_key_shape_and_dtype_of_the_original_is_known(name):
    """The state dict that an export writes, against the manifest, without a value being computed."""
    config = Config(model=OFFICIAL[name])
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in export.expected_shapes(config).items()}
    layers = config.model.decoder_layers
    state = rules.to_source(zeros, TABLE, export.unused_tensors(config), layers)
    manifest = oracle.manifest(name)
    assert state.keys() == manifest.keys()
    for key, entry in manifest.items():
        assert (list(state[key].shape), str(state[key].dtype)) == (entry["shape"], entry["dtype"]), key
        if entry["alias_of"]:
            assert classify(key, TABLE) == entry["alias_of"]
        assert isinstance(classify(key, TABLE), Ignore) == (key in export.unused_tensors(config))


def test_there_and_back_is_exact(tmp_path, monkeypatch, options, tokenizer, capsys):
    state = oracle.state("tiny")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    writer.write_checkpoint(tmp_path / "official.pth", prefixed)
    run(monkeypatch, "instancevg", tmp_path / "official.pth", tmp_path / "dir", *options)
    printed = capsys.readouterr().out
    assert "converted" in printed
    assert "missing                                                                0" in printed
    run(monkeypatch, "export", tmp_path / "dir", tmp_path / "back.pth")
    assert (
        f"unused by the model: {len(export.unused_tensors(Config()))} as converted, 0 at neutral"
        in capsys.readouterr().out
    )
    back = reader.state_dict(reader.read_checkpoint(tmp_path / "back.pth"))
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert np.array_equal(back[key].numpy(), value), key
    assert load_provenance(tmp_path / "dir")["converted_from"] == "instancevg"
    assert load_tokenizer(tmp_path / "dir").model_bytes == tokenizer.read_bytes()
    assert "official.pth" in (tmp_path / "dir" / "README.md").read_text()
    model, config = load_model(tmp_path / "dir")
    assert np.array_equal(model.text_proj.kernel[...], state["head.lan_embedding.weight"].T)
    assert config == Config(model=configs.tiny())


def test_export_without_the_originals_leftovers(tmp_path, monkeypatch, options, capsys):
    """As after training here: what the model does not use is at neutral values, and said to be."""
    writer.write_checkpoint(tmp_path / "official.pth", oracle.state("tiny"))
    run(monkeypatch, "instancevg", tmp_path / "official.pth", tmp_path / "dir", *options)
    provenance = json.loads((tmp_path / "dir" / "provenance.json").read_text())
    del provenance["files"][export.LEFT_OUT_FILE]
    (tmp_path / "dir" / "provenance.json").write_text(json.dumps(provenance))
    (tmp_path / "dir" / export.LEFT_OUT_FILE).unlink()
    run(monkeypatch, "export", tmp_path / "dir", tmp_path / "back.pth")
    assert "0 as converted, 15 at neutral values (zero)" in capsys.readouterr().out
    back = reader.state_dict(reader.read_checkpoint(tmp_path / "back.pth"))
    assert {key: list(value.shape) for key, value in back.items()} == {
        key: entry["shape"] for key, entry in oracle.manifest("tiny").items()
    }


def beit3_state() -> dict[str, np.ndarray]:
    """The tiny backbone as an official pretraining file at 224 pixels in half precision."""
    prefix = "vis_enc."
    state = {k.removeprefix(prefix): v for k, v in oracle.state("tiny").items() if k.startswith(prefix)}
    random = np.random.default_rng(0)
    state["beit3.encoder.embed_positions.A.weight"] = random.standard_normal((199, 64)).astype(np.float32)
    state |= {"mlm_head.weight": np.zeros((256, 64), np.float32), "mim_head.bias": np.zeros(8192, np.float32)}
    return {key: value.astype(np.float16) for key, value in state.items()}


def test_beit3_becomes_a_backbone(tmp_path, monkeypatch, options, capsys):
    state = beit3_state()
    writer.write_checkpoint(tmp_path / "beit3.zip", state, wrapper="model")
    run(monkeypatch, "beit3", tmp_path / "beit3.zip", tmp_path / "dir", *options)
    assert "left out: masked pretraining's heads      2" in capsys.readouterr().out
    provenance = load_provenance(tmp_path / "dir")
    assert (provenance["converted_from"], provenance["source"]) == ("beit3", "beit3.zip")
    with pytest.raises(InputError, match="holds BEiT-3, the backbone alone"):
        load_model(tmp_path / "dir")


@pytest.mark.parametrize("side", [24, 30])  # pictures of 384 and 480
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_fine_tuned_beit3_of_any_size_becomes_a_backbone(tmp_path, monkeypatch, tokenizer, capsys, side, size):
    """A retrieval or question answering file: another position table, its task's heads, half precision."""
    state = beit3_state()
    table = np.random.default_rng(side).standard_normal((3 + side * side, 64)).astype(np.float16)
    state["beit3.encoder.embed_positions.A.weight"] = table
    heads = ("vision_head.weight", "language_head.weight", "pooler.norm.weight", "head.0.weight", "logit_scale")
    state |= {key: np.ones((2, 2), np.float16) for key in heads}
    writer.write_checkpoint(tmp_path / "beit3.pth", state, wrapper="model")
    config = Config(model=dataclasses.replace(configs.tiny(), image_height=size[0], image_width=size[1]))
    (tmp_path / "config.json").write_text(configs.to_json(config))
    options = ["--config", tmp_path / "config.json", "--tokenizer", tokenizer]
    run(monkeypatch, "beit3", tmp_path / "beit3.pth", tmp_path / "dir", *options)
    assert "left out: heads of fine-tuning tasks      5" in capsys.readouterr().out
    model = InstanceVG(config.model, rngs=nnx.Rngs(0))
    load_pretrained(model, tmp_path / "dir")
    expected = resize_positions(table.astype(np.float32), (side, side), (size[0] // 16, size[1] // 16))
    assert np.array_equal(model.backbone.vision_positions[...], expected)
    patches = state["beit3.vision_embed.proj.weight"].astype(np.float32)
    assert np.array_equal(model.backbone.patch_embed.kernel[...], patches.transpose(2, 3, 1, 0).reshape(-1, 64))


def test_model_card_says_what_it_is(tmp_path, monkeypatch, options):
    writer.write_checkpoint(tmp_path / "InstanceVG-tiny.pth", oracle.state("tiny"))
    run(monkeypatch, "instancevg", tmp_path / "InstanceVG-tiny.pth", tmp_path / "dir", *options)
    card = (tmp_path / "dir" / "README.md").read_text()
    assert f"above {Config().eval.score_threshold}, for every task" in card
    assert "take the best query whatever its score" in card
    digest = hashlib.sha256((tmp_path / "InstanceVG-tiny.pth").read_bytes()).hexdigest()
    for words in (
        "# InstanceVG",
        f"`InstanceVG-tiny.pth` (sha256 {digest})",
        "64 x 64",
        "Predictor",
        "under their licence",
    ):
        assert words in card
    writer.write_checkpoint(tmp_path / "beit3.zip", beit3_state(), wrapper="model")
    run(monkeypatch, "beit3", tmp_path / "beit3.zip", tmp_path / "backbone", *options)
    card = (tmp_path / "backbone" / "README.md").read_text()
    assert "# BEiT-3, the backbone" in card
    assert "--config.model.pretrained=THIS_DIRECTORY" in card


@pytest.mark.parametrize("verbose", [False, True])
def test_problems_are_named_and_nothing_is_written(tmp_path, monkeypatch, options, capsys, verbose):
    state = oracle.state("tiny")
    for key in ("lan", "img"):
        state[f"head.{key}_embeding.weight"] = state.pop(f"head.{key}_embedding.weight")
    writer.write_checkpoint(tmp_path / "official.pth", state)
    words = [tmp_path / "official.pth", tmp_path / "dir", *options, *(["--verbose"] if verbose else [])]
    monkeypatch.setattr(sys, "argv", ["convert", "instancevg", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        run_command(command.main)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "does not fit the model: 2 missing, 2 unexpected, 0 of a wrong shape" in err
    assert "missing: head.lan_embedding.weight (nearest: head.lan_embeding.weight)" in err
    assert "and 1 more, listed with --verbose" in err
    assert out.count("nearest") == (4 if verbose else 0)
    assert not (tmp_path / "dir").exists()


def test_bad_arguments(tmp_path, monkeypatch, options):
    writer.write_checkpoint(tmp_path / "x.pth", oracle.state("tiny"))
    source, target = tmp_path / "x.pth", tmp_path / "dir"
    cases = [
        (["instancevg", tmp_path / "absent.pth", target, *options], "absent.pth: no such file"),
        (["instancevg", "https://x.org/a.pth", target, *options], "expected a path or hf://"),
        (["instancevg", "hf://owner/a.pth", target, *options], "expected hf://OWNER/REPOSITORY/PATH"),
        (["instancevg", source, target, "--config", "absent.py"], "absent.py: no such file"),
        (["instancevg", source, target, *options[:2]], "no tokenizer: give --tokenizer"),
        (["instancevg", source, tmp_path, *options], "exists and is not a checkpoint"),
        (["beit3", source, target, *options], "holds a whole InstanceVG model, .* with `python -m convert instancevg`"),
        (["export", target, tmp_path / "y.pth"], "no such directory"),
    ]
    for words, message in cases:
        with pytest.raises(InputError, match=message):
            run(monkeypatch, *words)
    assert not target.exists()


def test_hub_offline_says_so(monkeypatch, options, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="no network, and not downloaded before"):
        run(monkeypatch, "instancevg", "hf://owner/name/a.pth", "dir", *options)


def test_a_config_by_its_name(tmp_path, monkeypatch, options):
    """The tiny weights are not those of the official config, which is read before them."""
    writer.write_checkpoint(tmp_path / "x.pth", oracle.state("tiny"))
    with pytest.raises(InputError, match=r"x\.pth"):
        run(monkeypatch, "instancevg", tmp_path / "x.pth", tmp_path / "dir", "--config", "refcoco:large", *options[2:])


def test_instancevg_of_another_picture_size(tmp_path, monkeypatch, options, capsys):
    """4 x 4 patches in the file, 2 x 8 asked for: as many rows, so nothing but the sides tells."""
    state = oracle.state("tiny")
    writer.write_checkpoint(tmp_path / "official.pth", state)
    wide = dataclasses.replace(configs.tiny(), image_height=32, image_width=128)
    (tmp_path / "wide.json").write_text(configs.to_json(Config(model=wide)))
    words = ["--config", tmp_path / "wide.json", *options[2:]]
    run(monkeypatch, "instancevg", tmp_path / "official.pth", tmp_path / "dir", *words)
    key = "vis_enc.beit3.encoder.embed_positions.A.weight"
    assert (
        "resized for pictures of 32 x 128, patch 16: backbone.vision_positions 19 x 64 -> 19 x 64"
        in capsys.readouterr().out
    )
    model, _ = load_model(tmp_path / "dir")
    assert np.array_equal(model.backbone.vision_positions[...], resize_positions(state[key], (4, 4), (2, 8)))


def test_overrides(tmp_path, monkeypatch, options):
    """Official weights at another picture size in one command."""
    writer.write_checkpoint(tmp_path / "x.pth", oracle.state("tiny"))
    command_words = ["instancevg", tmp_path / "x.pth", tmp_path / "dir", *options]
    size = ["--config.model.image_height=96", "--config.model.image_width=32"]
    run(monkeypatch, *command_words, *size, "--config.eval.score_threshold=0.5")
    model, config = load_model(tmp_path / "dir")
    assert (config.model.image_height, config.model.image_width, config.eval.score_threshold) == (96, 32, 0.5)
    assert model.backbone.vision_positions.shape == (3 + 6 * 2, 64)
    for word, says in (
        ("--config.model.image_heigt=96", "no such field; did you mean model.image_height"),
        ("--config.model.image_height=much", "model.image_height is 'much'; expected int"),
        ("--config.model.image_height=90", "model.image_height is 90, model.patch_size 16; expected a multiple"),
        ("--config.eval.task=x", "eval.task is 'x'; expected one of gres"),
    ):
        with pytest.raises(InputError, match=says):
            run(monkeypatch, *command_words, word)
    with pytest.raises(SystemExit):
        run(monkeypatch, "export", tmp_path / "dir", tmp_path / "y.pth", *size)


def test_what_a_wrapper_saved_is_converted(tmp_path, monkeypatch, options):
    state = oracle.state("tiny")
    wrapped = {f"model._orig_mod.net.module.{key}": value for key, value in state.items()}
    writer.write_checkpoint(tmp_path / "last.ckpt", wrapped)
    run(monkeypatch, "instancevg", tmp_path / "last.ckpt", tmp_path / "dir", *options)
    assert np.array_equal(load_model(tmp_path / "dir")[0].text_proj.kernel[...], state["head.lan_embedding.weight"].T)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :],
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"mask_token", b"mosk_token"),
        lambda data: data.replace(b"mask_token", b"mosk_token", 1),
        lambda data: b"",
        lambda data: b"nonsense",
    ],
)
def test_damaged_leftovers_are_one_line(tmp_path, damage):
    path = tmp_path / export.LEFT_OUT_FILE
    path.write_bytes(damage(export.pack(export.unused_tensors(Config(model=configs.tiny())))))
    with pytest.raises(InputError, match=r"original_only\.npz: cannot be read") as error:
        export.kept_tensors(path, Config(model=configs.tiny()))
    assert "\n" not in str(error.value)


def test_tokenizer_of_another_model_is_refused(tmp_path, monkeypatch, options):
    """The embedded data set's has 64 ids, fewer than the model's rows: every sentence would be read wrongly."""
    writer.write_checkpoint(tmp_path / "x.pth", oracle.state("tiny"))
    words = ["instancevg", tmp_path / "x.pth", tmp_path / "dir", *options[:2], "--tokenizer", TOKENIZER_PATH]
    with pytest.raises(InputError, match="a tokenizer with 64 ids; expected 246 to 256 for a model with 256 rows"):
        run(monkeypatch, *words)
    assert not (tmp_path / "dir").exists()


@pytest.mark.parametrize(
    ("content", "variant", "message"),
    [
        ("def get_config(:", "", "SyntaxError: invalid syntax"),
        ("x = 1", "", "has no attribute 'get_config'"),
        ("def get_config():\n    return {}", "", r"c\.py: get_config\(\) should return an instancevg_jax"),
        ("def get_config():\n    return None", ":large", r"takes 0 positional arguments but 1 was given"),
        ("def get_config():\n    return 1 / 0", "", "the config file fails: ZeroDivisionError: division by zero"),
        ("import nothing_of_that_name", "", "ModuleNotFoundError: No module named"),
        ("raise Exception", "", "the config file fails: Exception:"),
        ("import sys\nsys.exit(0)", "", "the config file fails: SystemExit: 0"),
        ("def get_config():\n    raise SystemExit(3)", "", "the config file fails: SystemExit: 3"),
        ("def get_config():\n    return get_config()", "", "the config file fails: RecursionError: maximum recursion"),
    ],
)
def test_config_file_that_fails(tmp_path, monkeypatch, content, variant, message):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # where the flags library keeps the last one
    (tmp_path / "c.py").write_text(content + "\n")
    words = ["instancevg", tmp_path / "absent.pth", tmp_path / "dir", "--config", f"{tmp_path / 'c.py'}{variant}"]
    with pytest.raises(InputError, match=message):
        run(monkeypatch, *words)


def test_destination_is_judged_before_the_work(tmp_path, monkeypatch, options):
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "dir"
    with pytest.raises(InputError, match=r"file is a file; expected a folder"):
        run(monkeypatch, "instancevg", tmp_path / "absent.pth", below, *options)
    with pytest.raises(InputError, match="exists and is not a checkpoint"):
        run(monkeypatch, "instancevg", tmp_path / "absent.pth", tmp_path / "file", *options)
    with pytest.raises(InputError, match=r"/proc/dir: cannot be written \(No such file"):
        run(monkeypatch, "instancevg", tmp_path / "absent.pth", "/proc/dir", *options)
    with pytest.raises(InputError, match=r"/proc/x\.pth: cannot be written \(No such file"):
        run(monkeypatch, "export", tmp_path / "absent", "/proc/x.pth")


def trained(state: dict[str, np.ndarray], average: dict[str, np.ndarray], path) -> None:
    """A file of torch's zip layout with two state dicts."""
    pickled = writer._pickle
    both = state | {f"ema {key}": value for key, value in average.items()}

    def two(_, storages, wrapper):
        first, second = pickled(state, storages, wrapper), pickled(average, storages, "model_ema")
        return first[:-1] + second[3:]  # without the end of the first and the beginning of the second

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_pickle", two)
        writer.write_checkpoint(path, both)


def test_an_average_of_parameters_alone(tmp_path, monkeypatch, options, capsys):
    """As the original's class keeps it: no buffers, and stale copies of the shared heads."""
    state = oracle.state("tiny")
    average = {key: value * 2 for key, value in state.items() if not key.endswith(official.BUFFERS)}
    average["head.class_embed.1.weight"] = average["head.class_embed.1.weight"] + 1
    trained(state, average, tmp_path / "run.pth")
    run(monkeypatch, "instancevg", tmp_path / "run.pth", tmp_path / "dir", *options, "--ema")
    printed = capsys.readouterr().out
    assert "head.class_embed.1.weight differs from head.class_embed.0.weight, which is taken" in printed
    model, _ = load_model(tmp_path / "dir")
    assert np.array_equal(model.class_head.kernel[...], 2 * state["head.class_embed.0.weight"].T)
    norm = model.mask_decoder.stages[0].norm1
    assert np.array_equal(norm.mean[...], state["head.unet_decoder.bn1_4.running_mean"])
    assert np.array_equal(norm.scale[...], 2 * state["head.unet_decoder.bn1_4.weight"])
    run(monkeypatch, "instancevg", tmp_path / "run.pth", tmp_path / "plain", *options)
    assert np.array_equal(load_model(tmp_path / "plain")[0].class_head.kernel[...], model.class_head.kernel[...] / 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x.astype(np.int64), "holds int64; expected floating point numbers"),
        (lambda x: x.astype(np.complex64), "holds complex64; expected floating point numbers"),
        (lambda x: x * np.float32(np.nan), "holds NaN, infinity or values beyond float32"),
        (lambda x: x.astype(np.float64) * 1e300 + 1e300, "holds NaN, infinity or values beyond float32"),
    ],
)
def test_values_that_are_no_weights(tmp_path, monkeypatch, options, value, message):
    state = oracle.state("tiny")
    state["head.lan_embedding.weight"] = value(state["head.lan_embedding.weight"])
    writer.write_checkpoint(tmp_path / "x.pth", state)
    with pytest.raises(InputError, match=f"x.pth: head.lan_embedding.weight {message}"):
        run(monkeypatch, "instancevg", tmp_path / "x.pth", tmp_path / "dir", *options)
    assert not (tmp_path / "dir").exists()


def test_left_out_values_of_another_kind(tmp_path, monkeypatch, options):
    state = oracle.state("tiny")
    state["head.query_embedding.weight"] = state["head.query_embedding.weight"].astype(np.complex64)
    writer.write_checkpoint(tmp_path / "x.pth", state)
    with pytest.raises(InputError, match=r"head.query_embedding.weight is complex64 \[256, 64\], which does not fit"):
        run(monkeypatch, "instancevg", tmp_path / "x.pth", tmp_path / "dir", *options)


@pytest.mark.parametrize(("message", "says"), [("", "RuntimeError"), ("no route\nto host", "no route")])
def test_hub_errors_of_any_library(monkeypatch, message, says):
    def fail(*_):
        raise RuntimeError(message)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=rf"hf://owner/name/a\.pth: cannot be downloaded \({says}\)"):
        hub.local_file("hf://owner/name/a.pth")
