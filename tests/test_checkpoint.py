"""A checkpoint directory: what goes in comes out, and whatever is wrong with one is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx, traverse_util

from instancevg_jax import checkpoint
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import InputError
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.positions import resize_bicubic, resize_positions
from tests import oracle

SMALL = ModelConfig(
    image_height=32, image_width=32, vocab_size=112, max_tokens=12, width=16, depth=1, num_heads=2, mlp_dim=16,
    head_width=16, num_queries=3, decoder_layers=2, decoder_heads=2, decoder_points=2, decoder_mlp_dim=16,
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


def test_float16_halves_the_size_and_loads_as_float32(
    saved: Path, tmp_path: Path, tokenizer_bytes: bytes, caplog: pytest.LogCaptureFixture
):
    half = tmp_path / "half"
    checkpoint.save_checkpoint(half, random_params(SMALL), Config(model=SMALL), tokenizer_bytes, {}, dtype="float16")
    for path, dtype in ((saved, np.float32), (half, np.float16)):  # as stored; files vary by how Orbax packs arrays
        stored = ocp.StandardCheckpointer().metadata((path / "params").resolve()).item_metadata
        assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {np.dtype(dtype)}
    expected = leaves(checkpoint.load_model(saved)[0])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        loaded = checkpoint.load_model(half)[0]
    assert "Compiling" not in caplog.text
    for name, value in leaves(loaded).items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[name], rtol=1e-3)
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


def test_where_a_checkpoint_may_be(saved: Path, tmp_path: Path, monkeypatch):
    """A run folder, a file inside a checkpoint, the home directory; `best` goes before `checkpoint`."""
    run = tmp_path / "run"
    shutil.copytree(saved, run / "checkpoint")
    (run / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    inside = [f"checkpoint/{name}" for name in ("", "config.json", "params", "params/_METADATA")]
    for path in (run, "run", "~/run", run / ".." / "run", *(run / name for name in inside)):
        assert checkpoint.is_checkpoint(path), path
        assert checkpoint.find_checkpoint(path).resolve() == run / "checkpoint", path
        assert checkpoint.load_provenance(path)["source"] == "a test"
    shutil.copytree(saved, run / "best")
    assert checkpoint.find_checkpoint(run) == run / "best"
    assert checkpoint.find_checkpoint(run / "checkpoint") == run / "checkpoint"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere", "nowhere: no such directory; expected a checkpoint"),
        ("weights.pth", r"weights\.pth: a file; expected a checkpoint directory"),
        ("photos", "photos: not a whole checkpoint, config.json is missing"),
        ("n" * 300, "cannot be read .File name too long."),
        ("~nobody-of-that-name/x", "the home directory is unknown"),
        ("a\0b", "no such directory|null byte"),
    ],
)
def test_paths_that_are_no_checkpoint(tmp_path: Path, monkeypatch, path: str, says: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    assert not checkpoint.is_checkpoint(path)
    for load in (checkpoint.load_model, checkpoint.load_tokenizer, checkpoint.load_provenance):
        with pytest.raises(InputError, match=says) as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_byte_order_mark_in_what_people_edit(copy: Path):
    for name in ("config.json", "provenance.json"):
        (copy / name).write_bytes(b"\xef\xbb\xbf" + (copy / name).read_bytes())
    assert checkpoint.load_model(copy)[1] == Config(model=SMALL)


def test_git_lfs_pointers_are_named(copy: Path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"
    for name in ("tokenizer.spm", "params/_METADATA"):
        (copy / name).write_bytes(pointer)
        with pytest.raises(InputError, match=rf"{name}: .*; a git-lfs pointer; run `git lfs pull`"):
            checkpoint.load_model(copy)
        shutil.copy(copy / "config.json", copy / name)


def test_a_disk_without_room_is_found_out_before(copy: Path, monkeypatch, tokenizer_bytes: bytes):
    before = sorted(copy.parent.rglob("*"))
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1 << 20))
    big = {"a": np.zeros(2 << 20, np.uint8)}
    with pytest.raises(InputError, match=r"copy: .* \(no space left on device: 2\.0 MiB needed, 1\.0 MiB free\)"):
        checkpoint.save_checkpoint(copy, big, Config(model=SMALL), tokenizer_bytes, {})
    assert sorted(copy.parent.rglob("*")) == before


@pytest.mark.parametrize("part", ["config.json", "tokenizer.spm", "provenance.json", "params", "params/_METADATA"])
def test_a_missing_part_is_named(copy: Path, part: str):
    path = copy / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=f"not a whole checkpoint, {part} is missing"):
        checkpoint.load_model(copy)


def test_every_truncated_file_is_named(copy: Path):
    for name, entry in checkpoint.load_provenance(copy)["files"].items():
        size = entry["bytes"]
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[: size // 2])
        with pytest.raises(InputError, match=f"{name}: has {size // 2} bytes, expected {size}"):
            checkpoint.load_model(copy)
        (copy / name).write_bytes(whole)
    checkpoint.load_model(copy)


@pytest.mark.parametrize("damage", [lambda data: bytes(len(data)), lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_every_changed_byte_is_noticed(copy: Path, damage):
    for name in checkpoint.load_provenance(copy)["files"]:
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(damage(whole))
        load = checkpoint.load_tokenizer if name == "tokenizer.spm" else checkpoint.load_model
        with pytest.raises(
            InputError, match=rf"{name}: not the content that was written .*; the checkpoint is damaged"
        ):
            load(copy)
        (copy / name).write_bytes(whole)
    checkpoint.load_model(copy)
    checkpoint.load_tokenizer(copy)


def test_a_checkpoint_of_before_digests_loads(copy: Path):
    provenance = checkpoint.load_provenance(copy)
    provenance["files"] = {name: entry["bytes"] for name, entry in provenance["files"].items()}
    (copy / "provenance.json").write_text(json.dumps(provenance))
    checkpoint.load_model(copy)
    checkpoint.load_tokenizer(copy)


def test_the_model_card_may_be_edited(tmp_path: Path, tokenizer_bytes: bytes):
    """It asks for it: "write here what the source says"."""
    directory, card = tmp_path / "model", {"README.md": b"a card"}
    checkpoint.save_checkpoint(
        directory, random_params(SMALL), Config(model=SMALL), tokenizer_bytes, {}, extra_files=card
    )
    (directory / "README.md").write_text("another card, longer")
    checkpoint.load_model(directory)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe{}", "not UTF-8 text"),
        (b'{"model": {"depth": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", "nested too deeply"),
    ],
)
def test_a_config_that_is_no_json(copy: Path, content: bytes, says: str):
    (copy / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"config\.json: {says}; expected"):
        checkpoint.load_model(copy)


def test_where_nothing_can_be_written(saved: Path, tmp_path: Path, tokenizer_bytes: bytes):
    (tmp_path / "file").write_text("x")
    for directory, says in [
        (tmp_path / "file" / "model", "file is a file; expected a folder"),
        ("/proc/model", r"cannot be written \(No such file or directory\)"),
        (tmp_path / ("n" * 300), "File name too long"),
    ]:
        with pytest.raises(InputError, match=says):
            checkpoint.save_checkpoint(directory, random_params(SMALL), Config(model=SMALL), tokenizer_bytes, {})


@pytest.mark.parametrize("converted_from", ["beit3", "instancevg"])
@pytest.mark.parametrize("size", [(16, 64), (48, 96)])
def test_start_with_another_picture_size(tmp_path: Path, tokenizer_bytes: bytes, converted_from: str, size):
    """Stored for 32 x 32 pictures, 2 x 2 patches; 1 x 4 patches make a table of the same shape."""
    params = random_params(SMALL)
    stored = params if converted_from == "instancevg" else {"backbone": params["backbone"]}
    origin = {"converted_from": converted_from}
    checkpoint.save_checkpoint(tmp_path / "weights", stored, Config(model=SMALL), tokenizer_bytes, origin)
    config = dataclasses.replace(SMALL, image_height=size[0], image_width=size[1])
    model = InstanceVG(config, rngs=nnx.Rngs(1))
    checkpoint.load_pretrained(model, tmp_path / "weights")
    table = params["backbone"]["vision_positions"]
    expected = resize_positions(table, (2, 2), (size[0] // 16, size[1] // 16))
    np.testing.assert_array_equal(model.backbone.vision_positions[...], expected)
    np.testing.assert_array_equal(model.backbone.patch_embed.kernel[...], params["backbone"]["patch_embed"]["kernel"])


def test_start_with_another_patch_size(saved: Path):
    """Pictures of 16 x 16 in patches of 8: as many patches; the embedding is resized as convolution kernels."""
    config = dataclasses.replace(SMALL, image_height=16, image_width=16, patch_size=8)
    model = InstanceVG(config, rngs=nnx.Rngs(1))
    checkpoint.load_pretrained(model, saved)
    backbone = random_params(SMALL)["backbone"]
    np.testing.assert_array_equal(model.backbone.vision_positions[...], backbone["vision_positions"])
    kernels = backbone["patch_embed"]["kernel"].reshape(16, 16, 3, 16).transpose(3, 2, 0, 1)
    expected = resize_bicubic(kernels, (8, 8)).transpose(2, 3, 1, 0).reshape(-1, 16)
    np.testing.assert_allclose(model.backbone.patch_embed.kernel[...], expected, rtol=1e-6)


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
        ({"decoder_layers": 1}, r"have no place in it, such as decoder\.layers\.1\."),
        ({"patch_size": 0}, "model.patch_size is 0; expected at least 1"),
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
    with pytest.raises(InputError, match="holds BEiT-3, the backbone alone, which answers nothing; train from it"):
        checkpoint.load_model(tmp_path / "beit3")
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
