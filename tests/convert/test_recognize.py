"""What a file is of is read from its tensors; what cannot be read there is asked for, in one line."""

import dataclasses

import numpy as np
import pytest

from convert import recognize
from instancevg_jax import config as configs
from instancevg_jax.errors import InputError
from tests import oracle


def state(manifest: str) -> dict[str, np.ndarray]:
    """The official names and shapes, without values."""
    shapes = oracle.manifest(manifest)
    shapes = shapes.get("state_dict", shapes)
    return {key: np.broadcast_to(np.float32(0), entry["shape"]) for key, entry in shapes.items()}


@pytest.mark.parametrize(
    ("manifest", "name", "picture"),
    [
        ("grefcoco", "grefcoco", 320),
        ("refcoco_base", "refcoco", 320),
        ("refcoco_large", "refcoco:large", 320),
        ("beit3_base_patch16_224", "grefcoco", 224),
        ("beit3_large_patch16_224", "refcoco:large", 224),
    ],
)
def test_the_published_models(manifest, name, picture):
    found = recognize.recognize(state(manifest), "x.pth")
    assert found.kind == ("beit3" if manifest.startswith("beit3") else "instancevg")
    config, official = recognize.config_of(found, "x.pth"), recognize.official_config(name)
    sizes = {"image_height": picture, "image_width": picture, "pretrained": ""}
    assert config == dataclasses.replace(official, model=dataclasses.replace(official.model, **sizes))
    recognize.check_size(found, config.model, "x.pth")


def test_a_fine_tuned_picture_size_is_recognized():
    tensors = state("grefcoco")
    tensors["vis_enc.beit3.encoder.embed_positions.A.weight"] = np.zeros((3 + 24 * 24, 768), np.float32)
    assert recognize.config_of(recognize.recognize(tensors, "x.pth"), "x.pth").model.image_height == 384


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vis_enc.beit3.encoder.embed_positions.A.weight": (3 + 200, 768)}, "200 patches, 10 queries"),
        ({"head.query_generation.query_embed.weight": (20, 256)}, "InstanceVG base, .* 20 queries"),
        ({"vis_enc.beit3.text_embed.weight": (64010, 512)}, "InstanceVG, 12 blocks of width 512"),
        ({"vis_enc.beit3.encoder.layers.12.ffn.A.fc1.weight": (8, 8)}, "13 blocks of width 768"),
        ({"vis_enc.beit3.text_embed.weight": None}, "width None"),
    ],
)
def test_what_is_ambiguous_is_asked_for(change, says):
    tensors = state("grefcoco")
    for key, shape in change.items():
        tensors.pop(key, None)
        if shape:
            tensors[key] = np.broadcast_to(np.float32(0), shape)
    with pytest.raises(InputError, match=rf"x\.pth: holds .*{says}.*; not a published model, so give its config"):
        recognize.config_of(recognize.recognize(tensors, "x.pth"), "x.pth")


@pytest.mark.parametrize(
    ("manifest", "model", "says"),
    [
        ("refcoco_large", configs.base(), "InstanceVG large, 24 .*12 blocks of width 768 .base.; take a .* size large"),
        ("grefcoco", configs.large(), r"InstanceVG base, 12 .*24 blocks of width 1024 \(large\); take a .* size base"),
        ("beit3_base_patch16_224", configs.large(), r"BEiT-3 base, 12 .*24 blocks of width 1024 \(large\)"),
        ("refcoco_base", configs.base(), r"1 queries; the config's model.num_queries is 10; take configs/refcoco\.py"),
        ("grefcoco", dataclasses.replace(configs.base(), num_queries=1), r"is 1; take configs/grefcoco\.py"),
    ],
)
def test_sizes_mixed_up(manifest, model, says):
    with pytest.raises(InputError, match=says) as error:
        recognize.check_size(recognize.recognize(state(manifest), "x.pth"), model, "x.pth")
    assert "\n" not in str(error.value)


WRAPPINGS = {
    "DistributedDataParallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled, then distributed": lambda key: f"module._orig_mod.{key}",
    "distributed, then compiled": lambda key: f"_orig_mod.module.{key}",
    "Lightning": lambda key: f"model.{key}",
    "Lightning, all of it": lambda key: f"model._orig_mod.net.module.{key}",
    "any name": lambda key: f"my_net.inner.{key}",
    "parts compiled": lambda key: key.replace("beit3.", "_orig_mod.beit3.").replace("head.", "head._orig_mod."),
}


@pytest.mark.parametrize("name", WRAPPINGS)
@pytest.mark.parametrize("manifest", ["tiny", "beit3_base_patch16_224"])
def test_wrappers_leave_no_trace(name, manifest):
    tensors = state(manifest)
    wrapped = {WRAPPINGS[name](key): value for key, value in tensors.items()}
    assert list(recognize.plain_names(wrapped)) == list(tensors)


def test_tensors_of_a_loss_beside_the_model_are_left_out():
    tensors = state("tiny")
    wrapped = {f"model.{key}": value for key, value in tensors.items()} | {"criterion.weight": np.zeros(2)}
    assert list(recognize.plain_names(wrapped)) == list(tensors)


@pytest.mark.parametrize("names", [("student", "teacher"), ("model", "ema"), ("module.online", "module.target")])
@pytest.mark.parametrize("manifest", ["tiny", "beit3_base_patch16_224"])
def test_several_models_in_a_file_are_named(names, manifest):
    tensors = state(manifest)
    both = {f"{name}.{key}": value for name in names for key, value in tensors.items()}
    plain = recognize.plain_names(both)
    assert len(plain) == len(both)
    expected = ", ".join(rf"{name.removeprefix('module.')}\." for name in names)
    with pytest.raises(InputError, match=rf"x\.pth: holds several models, {expected}; expected the tensors of one"):
        recognize.recognize(plain, "x.pth")


def test_a_backbone_alone_by_any_name():
    tensors = {key: value for key, value in state("tiny").items() if key.startswith("vis_enc.")}
    for cut in ("", "vis_enc.", "vis_enc.beit3."):
        found = recognize.plain_names({key.removeprefix(cut): value for key, value in tensors.items()})
        assert recognize.recognize(found, "x").kind == "beit3", cut
        assert found.keys() == {key.removeprefix("vis_enc.") for key in tensors}


@pytest.mark.parametrize("names", [["a", "module.a"], ["module", "b"], ["x.", "y"], ["weight"], ["layer1.w", "fc.b"]])
def test_names_of_other_models_stay(names):
    plain = recognize.plain_names(dict.fromkeys(names, 0))
    assert len(plain) == len(names)
    with pytest.raises(InputError, match=r"x\.pth: neither InstanceVG nor BEiT-3; its \d tensors are called"):
        recognize.recognize({key: np.zeros(1) for key in plain}, "x.pth")


def test_the_wrong_command_is_named():
    for manifest, kind, says in (
        ("beit3_base_patch16_224", "instancevg", "holds BEiT-3, the backbone alone; .*`python -m convert beit3`"),
        ("grefcoco", "beit3", "holds a whole InstanceVG model, .*`python -m convert instancevg`"),
    ):
        with pytest.raises(InputError, match=says):
            recognize.check_kind(recognize.recognize(state(manifest), "x.pth"), kind, "x.pth")
