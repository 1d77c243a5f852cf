"""Your own data, prepared as family `custom` (docs/data.md, "Your own pictures"); sizes "small" and "base".

One command that checks, prepares and fine-tunes, with these settings and the network of what it starts from:

    instancevg train --data my.jsonl --images pictures --from instancevg-grefcoco

The same in steps:

    instancevg check custom --annotations my.jsonl --images pictures --fix cleaned.jsonl --tokenizer weights/beit3.spm
    instancevg prepare custom --annotations cleaned.jsonl --images pictures --data-dir data/prepared
    instancevg train --config configs/custom.py:base --workdir runs/mine

"small" trains 29 million parameters from scratch on 192 x 192 pictures: on one GPU, or slowly on CPUs. Without
pretrained weights it knows only the words and things of your data; take it to try your data out, or for simple pictures.

"base" fine-tunes a network of the official size on 320 x 320 pictures, in bfloat16 and with recomputation, which save memory
(docs/training.md). It starts from gRefCOCO's official weights; convert them to weights/grefcoco first (docs/weights.md).

Both follow protocol "strict", which uses objects that have only a box or only a mask. If no object of your data has a mask,
fine-tune with --config.loss.dice=0 --config.loss.bce=0, so that it is not taught that objects are boxes. Splits `train` and
`val` are expected; data.train_split, data.validation_splits and data.eval_splits name others.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig
from instancevg_jax.errors import InputError


def get_config(variant: str = "small") -> Config:
    """The settings of a size. All others are the defaults, which are the original's for gRefCOCO."""
    if variant not in ("", "small", "base"):
        raise InputError(f"configs/custom.py has no variant {variant!r}; expected 'small' or 'base'")
    config = Config(
        data=DataConfig(
            name="custom",
            data_dir="data/prepared",
            tokenizer="weights/beit3.spm",
            eval_splits=("val",),
            max_targets=16,
        ),
        eval=EvalConfig(task="gres", protocol="strict"),
        train=TrainConfig(batch_size=16, eval_every_epochs=1, checkpoint_every_epochs=1),
    )
    if variant == "base":
        config.model = ModelConfig(pretrained="weights/grefcoco", compute_dtype="bfloat16", remat="blocks")
        config.optim = OptimConfig(learning_rate=1e-4, decay_epochs=(4,))
        config.train.num_epochs = 5
    else:
        config.model = ModelConfig(
            image_height=192,
            image_width=192,
            max_tokens=32,
            max_text_positions=64,
            width=256,
            depth=6,
            num_heads=4,
            mlp_dim=1024,
            head_width=128,
            decoder_mlp_dim=512,
            query_mlp_dim=256,
            initialization="local",
        )
        config.optim = OptimConfig(backbone_scale=1.0, warmup_epochs=2, decay_epochs=(25,))
        config.train.num_epochs = 30
    return config
