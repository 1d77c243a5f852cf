"""The commands, in the process: official layouts in, checkpoint directories out, and back."""

import dataclasses
import hashlib
import json
import sys

import numpy as np
import pytest
from flax import nnx

from convert import __main__ as command
from convert import beit3, export, torch_reader, torch_writer
from convert.instancevg import TABLE
from convert.rules import Ignore, classify
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import load_model, load_pretrained, load_provenance, load_tokenizer
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, run_command
from instancevg_jax.models.instancevg import InstanceVG
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
def options(tmp_path):
    """--config and --tokenizer of the tiny model."""
    path = tmp_path / "config.json"
    path.write_text(configs.to_json(Config(model=configs.tiny())))
    return ["--config", path, "--tokenizer", oracle.path("fixtures/tiny_beit3.spm")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n.startswith("refcoco") else n for n in OFFICIAL]
)
def test_every_key_shape_and_dtype_of_the_original_is_known(name):
    """The state dict that an export writes, against the manifest, without a value being computed."""
    config = Config(model=OFFICIAL[name])
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in export.expected_shapes(config).items()}
    layers = config.model.decoder_layers
    state = command.rules.to_source(zeros, TABLE, export.unused_tensors(config), layers)
    manifest = oracle.manifest(name)
    assert state.keys() == manifest.keys()
    for key, entry in manifest.items():
        assert (list(state[key].shape), str(state[key].dtype)) == (entry["shape"], entry["dtype"]), key
        if entry["alias_of"]:
            assert classify(key, TABLE) == entry["alias_of"]
        assert isinstance(classify(key, TABLE), Ignore) == (key in export.unused_tensors(config))


def test_there_and_back_is_exact(tmp_path, monkeypatch, options, capsys):
    state = oracle.state("tiny")
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch_writer.write_checkpoint(tmp_path / "official.pth", prefixed)
    run(monkeypatch, "instancevg", tmp_path / "official.pth", tmp_path / "dir", *options)
    printed = capsys.readouterr().out
    assert "converted" in printed
    assert "missing                                                                0" in printed
    run(monkeypatch, "export", tmp_path / "dir", tmp_path / "back.pth")
    assert (
        f"unused by the model: {len(export.unused_tensors(Config()))} as converted, 0 at neutral"
        in capsys.readouterr().out
    )
    back = torch_reader.state_dict(torch_reader.read_checkpoint(tmp_path / "back.pth"))
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].dtype == value.dtype
        assert np.array_equal(back[key].numpy(), value), key
    assert load_provenance(tmp_path / "dir")["converted_from"] == "instancevg"
    assert load_tokenizer(tmp_path / "dir").model_bytes == oracle.path("fixtures/tiny_beit3.spm").read_bytes()
    assert "official.pth" in (tmp_path / "dir" / "README.md").read_text()
    model, config = load_model(tmp_path / "dir")
    assert np.array_equal(model.text_proj.kernel[...], state["head.lan_embedding.weight"].T)
    assert config == Config(model=configs.tiny())


def test_export_without_the_originals_leftovers(tmp_path, monkeypatch, options, capsys):
    """As after training here: what the model does not use is at neutral values, and said to be."""
    torch_writer.write_checkpoint(tmp_path / "official.pth", oracle.state("tiny"))
    run(monkeypatch, "instancevg", tmp_path / "official.pth", tmp_path / "dir", *options)
    provenance = json.loads((tmp_path / "dir" / "provenance.json").read_text())
    del provenance["files"][export.LEFT_OUT_FILE]
    (tmp_path / "dir" / "provenance.json").write_text(json.dumps(provenance))
    (tmp_path / "dir" / export.LEFT_OUT_FILE).unlink()
    run(monkeypatch, "export", tmp_path / "dir", tmp_path / "back.pth")
    assert "0 as converted, 15 at neutral values (zero)" in capsys.readouterr().out
    back = torch_reader.state_dict(torch_reader.read_checkpoint(tmp_path / "back.pth"))
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
    torch_writer.write_checkpoint(tmp_path / "beit3.zip", state, wrapper="model")
    run(monkeypatch, "beit3", tmp_path / "beit3.zip", tmp_path / "dir", *options)
    assert "left out: masked pretraining's heads      2" in capsys.readouterr().out
    provenance = load_provenance(tmp_path / "dir")
    assert (provenance["converted_from"], provenance["source"]) == ("beit3", "beit3.zip")
    with pytest.raises(InputError, match="are not stored"):
        load_model(tmp_path / "dir")


@pytest.mark.parametrize("side", [24, 30])  # pictures of 384 and 480
@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_fine_tuned_beit3_of_any_size_becomes_a_backbone(tmp_path, monkeypatch, capsys, side, size):
    """A retrieval or question answering file: another position table, its task's heads, half precision."""
    state = beit3_state()
    table = np.random.default_rng(side).standard_normal((3 + side * side, 64)).astype(np.float16)
    state["beit3.encoder.embed_positions.A.weight"] = table
    heads = ("vision_head.weight", "language_head.weight", "pooler.norm.weight", "head.0.weight", "logit_scale")
    state |= {key: np.ones((2, 2), np.float16) for key in heads}
    torch_writer.write_checkpoint(tmp_path / "beit3.pth", state, wrapper="model")
    config = Config(model=dataclasses.replace(configs.tiny(), image_height=size[0], image_width=size[1]))
    (tmp_path / "config.json").write_text(configs.to_json(config))
    options = ["--config", tmp_path / "config.json", "--tokenizer", oracle.path("fixtures/tiny_beit3.spm")]
    run(monkeypatch, "beit3", tmp_path / "beit3.pth", tmp_path / "dir", *options)
    assert "left out: heads of fine-tuning tasks      5" in capsys.readouterr().out
    model = InstanceVG(config.model, rngs=nnx.Rngs(0))
    load_pretrained(model, tmp_path / "dir")
    expected = beit3.resize_positions(table.astype(np.float32), (size[0] // 16, size[1] // 16))
    assert np.array_equal(model.backbone.vision_positions[...], expected)
    patches = state["beit3.vision_embed.proj.weight"].astype(np.float32)
    assert np.array_equal(model.backbone.patch_embed.kernel[...], patches.transpose(2, 3, 1, 0).reshape(-1, 64))


def test_model_card_says_what_it_is(tmp_path, monkeypatch, options):
    torch_writer.write_checkpoint(tmp_path / "InstanceVG-tiny.pth", oracle.state("tiny"))
    run(monkeypatch, "instancevg", tmp_path / "InstanceVG-tiny.pth", tmp_path / "dir", *options)
    card = (tmp_path / "dir" / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "InstanceVG-tiny.pth").read_bytes()).hexdigest()
    for words in (
        "# InstanceVG",
        f"`InstanceVG-tiny.pth` (sha256 {digest})",
        "64 x 64",
        "Predictor",
        "under their licence",
    ):
        assert words in card
    torch_writer.write_checkpoint(tmp_path / "beit3.zip", beit3_state(), wrapper="model")
    run(monkeypatch, "beit3", tmp_path / "beit3.zip", tmp_path / "backbone", *options)
    card = (tmp_path / "backbone" / "README.md").read_text()
    assert "# BEiT-3, the backbone" in card
    assert "--config.model.pretrained=THIS_DIRECTORY" in card


def test_problems_are_listed_and_nothing_is_written(tmp_path, monkeypatch, options, capsys):
    state = oracle.state("tiny")
    state["head.lan_embeding.weight"] = state.pop("head.lan_embedding.weight")
    torch_writer.write_checkpoint(tmp_path / "official.pth", state)
    monkeypatch.setattr(
        sys, "argv", ["convert", "instancevg", *map(str, (tmp_path / "official.pth", tmp_path / "dir", *options))]
    )
    with pytest.raises(SystemExit) as exit_:
        run_command(command.main)
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "does not fit the model: 1 missing, 1 unexpected, 0 of a wrong shape" in err
    assert "missing: head.lan_embedding.weight (nearest: head.lan_embeding.weight)" in out
    assert not (tmp_path / "dir").exists()


def test_bad_arguments(tmp_path, monkeypatch, options):
    torch_writer.write_checkpoint(tmp_path / "x.pth", oracle.state("tiny"))
    source, target = tmp_path / "x.pth", tmp_path / "dir"
    cases = [
        (["instancevg", tmp_path / "absent.pth", target, *options], "absent.pth: no such file"),
        (["instancevg", "https://x.org/a.pth", target, *options], "expected a path or hf://"),
        (["instancevg", "hf://owner/a.pth", target, *options], "expected hf://OWNER/REPOSITORY/PATH"),
        (["instancevg", source, target, "--config", "absent.py"], "absent.py: no such file"),
        (["instancevg", source, target, *options[:2]], "no tokenizer: give --tokenizer"),
        (["instancevg", source, tmp_path, *options], "exists and is not a checkpoint"),
        (["beit3", source, target, *options], "does not fit the model"),
        (["export", target, tmp_path / "y.pth"], "no such directory"),
    ]
    for words, message in cases:
        with pytest.raises(InputError, match=message):
            run(monkeypatch, *words)
    assert not target.exists()


def test_hub_without_its_package_or_a_network(monkeypatch, options):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs the package huggingface_hub \(pip install"):
        run(monkeypatch, "instancevg", "hf://owner/name/a.pth", "dir", *options)


def test_hub_offline_says_so(monkeypatch, options, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="no network, and not downloaded before"):
        run(monkeypatch, "instancevg", "hf://owner/name/a.pth", "dir", *options)


def test_config_file_with_a_size(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        "from instancevg_jax.config import Config, base, large\n"
        "def get_config(size='base'):\n    return Config(model={'base': base, 'large': large}[size]())\n"
    )
    assert command._load_config(str(path)).model.width == 768
    assert command._load_config(f"{path}:large").model.width == 1024
