"""gRefCOCO (GREC and GRES), base size. Source: configs/gres/InstanceVG-grefcoco.py of the original.

    instancevg prepare grefcoco --annotations grefs/instance.json --images train2014 --data-dir data/prepared
    instancevg convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config grefcoco --tokenizer weights/beit3.spm
    instancevg train --config configs/grefcoco.py --workdir runs/grefcoco

Memory on one device, float32: 3.5 GiB of state and 8 GiB kept for the backward pass (docs/scaling.md). With
--config.model.compute_dtype=bfloat16 --config.model.remat=blocks the latter is 1.7 GiB. Published scores: arXiv:2509.13747.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from instancevg_jax.errors import InputError


def get_config(variant: str = "") -> Config:
    """The original's settings. All others are the defaults, which are the original's for gRefCOCO."""
    if variant not in ("", "base"):
        raise InputError(f"configs/grefcoco.py has no variant {variant!r}; expected none or 'base'")
    return Config(
        model=ModelConfig(pretrained="weights/beit3_base"),
        data=DataConfig(
            name="grefcoco",
            data_dir="data/prepared",
            tokenizer="weights/beit3.spm",
            validation_splits=("val",),
            eval_splits=("val", "testA", "testB"),
            max_targets=16,
        ),
        eval=EvalConfig(task="gres"),
        train=TrainConfig(seed=6666, batch_size=16, num_epochs=10, eval_every_epochs=1, checkpoint_every_epochs=1),
    )
