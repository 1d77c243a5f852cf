"""A checkpoint directory: what goes in comes out, and whatever is wrong with one is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from instancevg_jax import checkpoint
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError
from instancevg_jax.models.instancevg import InstanceVG
from tests import oracle

SMALL = ModelConfig(
    image_height=32, image_width=32, vocab_size=112, max_tokens=12, width=16, depth=1, num_heads=2, mlp_dim=16,
    head_width=16, num_queries=3, decoder_layers=1, decoder_heads=2, decoder_points=2, decoder_mlp_dim=16,
    query_mlp_dim=16,
)  # fmt: skip


def random_params(config: ModelConfig) -> dict:
    """The model's state with small random numbers, without the cost of initializing it."""
    rng = np.random.default_rng(0)
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: InstanceVG(config, rngs=nnx.Rngs(0)))))
    return jax.tree.map(lambda leaf: rng.uniform(0.01, 0.2, leaf.shape).astype(np.float32), abstract)


@pytest.fixture(scope="module")
def tokenizer_bytes() -> bytes:
    return oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer_bytes: bytes) -> Path:
    """One checkpoint, never changed; tests that break one copy it."""
    directory = tmp_path_factory.mktemp("checkpoints") / "model"
    checkpoint.save_checkpoint(
        directory, random_params(SMALL), Config(model=SMALL), tokenizer_bytes, {"source": "a test"}
    )
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def leaves(model: InstanceVG) -> dict:
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))


def test_round_trip(saved: Path, tokenizer_bytes: bytes):
    model, config = checkpoint.load_model(saved)
    assert config == Config(model=SMALL)
    assert checkpoint.load_tokenizer(saved).model_bytes == tokenizer_bytes
    expected = traverse_util.flatten_dict(random_params(SMALL))
    loaded = leaves(model)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(loaded[name], jax.Array)
        np.testing.assert_array_equal(loaded[name], value, err_msg=str(name))
    provenance = checkpoint.load_provenance(saved)
    assert provenance["source"] == "a test"
    assert provenance["version"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]  # no temporary folder stays behind


def test_no_path_of_the_machine_is_stored(saved: Path):
    """A shipped checkpoint must not tell where it was made."""
    for path in saved.rglob("*"):
        assert not path.is_file() or str(saved.parent).encode() not in path.read_bytes(), path


def test_an_nnx_state_is_saved_as_its_dict(saved: Path, tmp_path: Path, tokenizer_bytes: bytes):
    model, config = checkpoint.load_model(saved)
    checkpoint.save_checkpoint(tmp_path / "deep" / "again", nnx.state(model), config, tokenizer_bytes, {})
    again, _ = checkpoint.load_model(tmp_path / "deep" / "again")
    expected = leaves(model)
    assert all(np.array_equal(value, expected[name]) for name, value in leaves(again).items())


def test_float16_halves_the_size_and_loads_as_float32(saved: Path, tmp_path: Path, tokenizer_bytes: bytes):
    half = tmp_path / "half"
    checkpoint.save_checkpoint(half, random_params(SMALL), Config(model=SMALL), tokenizer_bytes, {}, dtype="float16")
    size = {path: sum(f.stat().st_size for f in (path / "params").rglob("*") if f.is_file()) for path in (saved, half)}
    assert size[half] < 0.75 * size[saved]
    expected = leaves(checkpoint.load_model(saved)[0])
    for name, value in leaves(checkpoint.load_model(half)[0]).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-3)
    with pytest.raises(InputError, match="'float16' or None"):
        checkpoint.save_checkpoint(half, {}, Config(), tokenizer_bytes, {}, dtype="int8")
    with pytest.raises(InputError, match=r"parameter a\.b holds values beyond"):
        checkpoint.save_checkpoint(
            half, {"a": {"b": np.float32([1e6])}}, Config(), tokenizer_bytes, {}, dtype="float16"
        )


def test_a_failed_save_leaves_the_old_checkpoint(copy: Path, tokenizer_bytes: bytes):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(TypeError):
        checkpoint.save_checkpoint(copy, {"a": np.ones(1)}, Config(), tokenizer_bytes, {"not JSON": object()})
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert list(copy.parent.iterdir()) == [copy]


def test_saving_replaces_a_checkpoint_and_nothing_else(copy: Path, tmp_path: Path, tokenizer_bytes: bytes):
    params = random_params(SMALL)
    checkpoint.save_checkpoint(copy, params, Config(model=SMALL), tokenizer_bytes, {"source": "second"})
    assert checkpoint.load_provenance(copy)["source"] == "second"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="photos: exists and is not a checkpoint"):
        checkpoint.save_checkpoint(other, params, Config(model=SMALL), tokenizer_bytes, {})
    assert (other / "a.jpg").read_bytes() == b"precious"


def test_a_missing_directory_is_named(tmp_path: Path):
    for load in (checkpoint.load_model, checkpoint.load_tokenizer):
        with pytest.raises(InputError, match="nowhere: no such directory"):
            load(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["config.json", "tokenizer.spm", "provenance.json", "params", "params/_METADATA"])
def test_a_missing_part_is_named(copy: Path, part: str):
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"not a whole checkpoint, {part} is missing"):
        checkpoint.load_model(copy)


def test_every_truncated_file_is_named(copy: Path):
    for name, size in checkpoint.load_provenance(copy)["files"].items():
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: size // 2])
        with pytest.raises(InputError, match=f"{name}: has {size // 2} bytes, expected {size}"):
            checkpoint.load_model(copy)
        (copy / name).write_bytes(whole)
    checkpoint.load_model(copy)


def test_another_format_is_named(copy: Path):
    path = copy / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": "something else"}))
    with pytest.raises(InputError, match="the format is 'something else'; expected 'instancevg_jax checkpoint"):
        checkpoint.load_model(copy)
    path.write_text("{")
    with pytest.raises(InputError, match=r"provenance\.json: not valid JSON"):
        checkpoint.load_model(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mlp_dim": 20}, r"fc1\.bias is stored as \(16,\), the config asks for \(20,\)"),
        ({"depth": 2}, r"are not stored, such as backbone\.blocks\.1\."),
        ({"decoder_layers": 0}, r"have no place in it, such as decoder\.layers\.0\."),
        ({"patch_size": 0}, "no model can be built from it"),
    ],
)
def test_a_config_of_another_model_is_named(copy: Path, change: dict, says: str):
    config = Config(model=dataclasses.replace(SMALL, **change))
    (copy / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    with pytest.raises(InputError, match=says) as caught:
        checkpoint.load_model(copy)
    assert "config.json" in str(caught.value)


def test_start_from_a_converted_backbone(saved: Path, tmp_path: Path, tokenizer_bytes: bytes):
    """A directory converted from BEiT-3 fills the backbone and leaves the head as it was."""
    backbone = {"backbone": random_params(SMALL)["backbone"]}
    checkpoint.save_checkpoint(
        tmp_path / "beit3", backbone, Config(model=SMALL), tokenizer_bytes, {"converted_from": "beit3"}
    )
    model = InstanceVG(SMALL, rngs=nnx.Rngs(1))
    before = leaves(model)
    checkpoint.load_pretrained(model, tmp_path / "beit3")
    for path, leaf in leaves(model).items():
        if path[0] == "backbone":
            np.testing.assert_array_equal(leaf, traverse_util.flatten_dict(backbone)[path])
        else:
            np.testing.assert_array_equal(leaf, before[path])
    wider = InstanceVG(dataclasses.replace(SMALL, width=32), rngs=nnx.Rngs(1))
    with pytest.raises(InputError, match="is stored as"):
        checkpoint.load_pretrained(wider, saved)
