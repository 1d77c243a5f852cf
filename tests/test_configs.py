"""Every config file builds, and the official ones say what the original's say, field by field."""

import dataclasses
import importlib

import jax
import pytest
from flax import nnx

from instancevg_jax import config as configs
from instancevg_jax.errors import InputError
from instancevg_jax.models.instancevg import InstanceVG

VARIANTS = {
    "shapes": ("", "long"),
    "custom": ("small", "base"),
    "grefcoco": ("",),
    "refzom": ("base",),
    "rrefcoco": ("",),
    "refcoco": ("", "large", "unc", "plus_large", "umd", "google"),
}
PAIRS = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]

# What the original's configs set (configs/gres, refzom, rrefcoco, refcoco/InstanceVG-{B,L}-refcoco), in our names.
GENERALIZED = {
    "model.image_height": 320,
    "model.image_width": 320,
    "model.patch_size": 16,
    "model.vocab_size": 64010,
    "model.max_tokens": 50,
    "model.max_text_positions": 1024,
    "model.width": 768,
    "model.depth": 12,
    "model.num_heads": 12,
    "model.mlp_dim": 3072,
    "model.drop_path": 0.1,
    "model.head_width": 256,
    "model.num_queries": 10,
    "model.decoder_layers": 3,
    "model.decoder_heads": 8,
    "model.decoder_points": 4,
    "model.decoder_mlp_dim": 1024,
    "model.query_mlp_dim": 512,
    "model.head_dropout": 0.1,
    "model.text_selection": "token",  # score_text_select=True
    "model.point_selection": "distance",  # dist_guided_query_select_params.enable=True
    "model.point_distance_weight": 0.003,
    "loss.no_object_weight": 0.1,
    "loss.auxiliary_weights": "one",  # their key names miss the weight table
    "loss.no_target_class_weights": (0.9, 1.1),
    "loss.point_map": 0.1,
    "loss.class_weight": 1.0,
    "loss.boxes_weight": 5.0,
    "loss.giou_weight": 2.0,
    "loss.cost_class": 1.0,
    "loss.cost_boxes": 5.0,
    "loss.cost_giou": 2.0,
    "loss.cost_point": 2.0,
    "loss.dice": 1.0,
    "loss.bce": 1.0,
    "loss.no_target": 0.2,
    "loss.negative_masks": 0.2,
    "loss.detection": 0.1,
    "data.train_split": "train",
    "optim.name": "adam",
    "optim.amsgrad": True,
    "optim.learning_rate": 5e-4,
    "optim.backbone_scale": 0.1,
    "optim.b1": 0.9,
    "optim.b2": 0.98,
    "optim.eps": 1e-9,
    "optim.weight_decay": 0.0,
    "optim.clip_norm": 0.15,
    "optim.warmup_epochs": 1,
    "optim.decay_epochs": (7,),
    "optim.decay_factor": 0.1,
    "train.batch_size": 16,
    "train.num_epochs": 10,
    "train.eval_every_epochs": 1,
    "train.checkpoint_every_epochs": 1,
    "train.ema_decay": 0.0,
    "train.seed": 6666,
    "eval.score_weighted": True,
    "eval.mask_threshold": 0.5,
    "eval.score_threshold": 0.7,
    "eval.nms_threshold": 0.0,
    "eval.mask_merge": "merge",
}
ONE_TARGET = GENERALIZED | {
    "model.max_tokens": 20,
    "model.num_queries": 1,
    "loss.negative_masks": 0.0,
    "data.max_targets": 1,  # a record has one box
    "data.validation_splits": ("val_refcoco_unc", "val_refcocoplus_unc", "val_refcocog_umd"),
    "data.eval_splits": (
        "val_refcoco_unc",
        "testA_refcoco_unc",
        "testB_refcoco_unc",
        "val_refcocoplus_unc",
        "testA_refcocoplus_unc",
        "testB_refcocoplus_unc",
        "val_refcocog_umd",
        "test_refcocog_umd",
    ),
    "optim.warmup_epochs": 3,
    "optim.decay_epochs": (15,),
    "train.num_epochs": 20,
}
LARGE = ONE_TARGET | {
    "model.width": 1024,
    "model.depth": 24,
    "model.num_heads": 16,
    "model.mlp_dim": 4096,
    "model.drop_path": 0.0,
    "train.batch_size": 4,
}
OFFICIAL = {
    ("grefcoco", "base"): GENERALIZED
    | {"eval.task": "gres", "data.validation_splits": ("val",), "data.eval_splits": ("val", "testA", "testB")},
    ("refzom", "base"): GENERALIZED
    | {"eval.task": "refzom", "data.validation_splits": ("test",), "data.eval_splits": ("test",)},
    ("rrefcoco", "base"): GENERALIZED
    | {
        "eval.task": "rrefcoco",
        "data.validation_splits": ("val_rrefcoco", "val_rrefcocoplus", "val_rrefcocog"),
        "data.eval_splits": ("val_rrefcoco", "val_rrefcocoplus", "val_rrefcocog"),
    },
    ("refcoco", "base"): ONE_TARGET | {"eval.task": "refcoco"},
    ("refcoco", "large"): LARGE | {"eval.task": "refcoco"},
}


def get(name: str, variant: str) -> configs.Config:
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize(("name", "variant"), PAIRS)
def test_survives_json(name, variant):
    config = get(name, variant)
    assert configs.from_json(configs.to_json(config)) == config


@pytest.mark.parametrize(("name", "variant"), [("shapes", ""), ("custom", "small"), ("refcoco", "large")])
def test_builds(name, variant):
    model = nnx.eval_shape(lambda: InstanceVG(get(name, variant).model, rngs=nnx.Rngs(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) > 1e6


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_equals_the_original_field_by_field(name, variant):
    config = get(name, variant)
    for field, value in OFFICIAL[name, variant].items():
        section, leaf = field.split(".")
        assert getattr(getattr(config, section), leaf) == value, field


@pytest.mark.parametrize("size", ["", "_large"])
def test_a_single_set_is_trained_as_the_mixture(size):
    mixture = get("refcoco", size.removeprefix("_"))
    for variant, splits in {"unc": ("val", "testA", "testB"), "umd": ("val", "test"), "google": ("val",)}.items():
        config = get("refcoco", variant + size)
        assert (config.data.validation_splits, config.data.eval_splits) == (("val",), splits)
        assert config.data.data_dir == f"data/prepared_{variant}"
        assert dataclasses.replace(config, data=mixture.data) == mixture


@pytest.mark.parametrize("name", VARIANTS)
def test_unknown_variant_is_named(name):
    with pytest.raises(InputError, match="no variant 'huge'"):
        get(name, "huge")
