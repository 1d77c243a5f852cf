"""A small model on the embedded data set, trained from scratch on two CPU cores.

    instancevg train --config configs/shapes.py --workdir runs/demo

Without a variant, it trains for minutes on level `basic`, as `make demo` does: on colours first, then every second sentence names
only shapes, which take longer to learn. ":long" also trains on level `full`, at 96 instead of 72 pixels and with six times as many
examples; it made the checkpoint that comes with the package. docs/results.md has the measured results.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig
from instancevg_jax.errors import InputError


def get_config(variant: str = "") -> Config:
    """The config of a variant; see the module's docstring."""
    if variant not in ("", "long"):
        raise InputError(f"configs/shapes.py has no variant {variant!r}; expected none or 'long'")
    config = Config(
        model=ModelConfig(
            image_height=72,
            image_width=72,
            patch_size=12,
            vocab_size=64,
            max_tokens=10,
            max_text_positions=32,
            width=128,
            depth=4,
            num_heads=4,
            mlp_dim=512,
            drop_path=0.0,
            head_width=32,
            num_queries=8,
            decoder_layers=2,
            decoder_heads=4,
            decoder_mlp_dim=128,
            query_mlp_dim=64,
            head_dropout=0.0,
            initialization="local",
        ),
        loss=LossConfig(class_weight=4.0, no_object_weight=0.25, detection=0.3, no_target=2.0, point_map=1.0),
        data=DataConfig(
            name="shapes",
            max_targets=8,
            num_workers=1,
            shapes_curriculum=9600,
            shapes_turns=("basic", "outlines"),
            num_eval_examples=1536,
        ),
        optim=OptimConfig(
            name="muon",
            learning_rate=8e-4,
            backbone_scale=1.0,
            weight_decay=0.01,
            amsgrad=False,
            clip_norm=1.0,
            schedule="cosine",
            warmup_steps=150,
        ),
        eval=EvalConfig(batch_size=64, score_threshold=0.5, no_target_rule="softmax", nms_threshold=0.3),
        train=TrainConfig(batch_size=16, num_steps=2000, log_every=100),
    )
    if variant == "long":
        config.model.image_height, config.model.image_width = 96, 96
        config.model.max_tokens = 20
        config.data.shapes_level, config.data.shapes_curriculum = "full", 16_000
        config.data.shapes_turns = ("basic", "outlines", "full", "full")
        config.optim.weight_decay = 0.1
        config.train.num_steps = 12_000
        config.train.log_every, config.train.eval_every, config.train.checkpoint_every = 200, 6000, 2000
        config.train.checkpoint_dtype = "float16"
    return config
