"""R-RefCOCO, R-RefCOCO+ and R-RefCOCOg, base size. Source: configs/rrefcoco/InstanceVG-rrefcoco.py of the original.

    instancevg prepare rrefcoco --annotations rrefcoco/instance.json --images train2014 --data-dir data/prepared
    instancevg convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config rrefcoco --tokenizer weights/beit3.spm
    instancevg train --config configs/rrefcoco.py --workdir runs/rrefcoco

It needs the memory of configs/grefcoco.py. The data set has validation splits only. Published scores: arXiv:2509.13747.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from instancevg_jax.errors import InputError

SPLITS = ("val_rrefcoco", "val_rrefcocoplus", "val_rrefcocog")


def get_config(variant: str = "") -> Config:
    """The original's settings. All others are the defaults."""
    if variant not in ("", "base"):
        raise InputError(f"configs/rrefcoco.py has no variant {variant!r}; expected none or 'base'")
    return Config(
        model=ModelConfig(pretrained="weights/beit3_base"),
        data=DataConfig(
            name="rrefcoco",
            data_dir="data/prepared",
            tokenizer="weights/beit3.spm",
            validation_splits=SPLITS,
            eval_splits=SPLITS,
            max_targets=16,
        ),
        eval=EvalConfig(task="rrefcoco"),
        train=TrainConfig(seed=6666, batch_size=16, num_epochs=10, eval_every_epochs=1, checkpoint_every_epochs=1),
    )
