"""Ref-ZOM, base size. Source: configs/refzom/InstanceVG-refzom.py of the original.

    instancevg prepare refzom --annotations ref-zom/instance.json --images trainval2014 --data-dir data/prepared
    instancevg convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config refzom --tokenizer weights/beit3.spm
    instancevg train --config configs/refzom.py --workdir runs/refzom

It needs the memory of configs/grefcoco.py. Ref-ZOM has no validation split: like the original, training validates on `test`,
so the best models are chosen on it. Published scores: arXiv:2509.13747.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from instancevg_jax.errors import InputError


def get_config(variant: str = "") -> Config:
    """The original's settings. All others are the defaults."""
    if variant not in ("", "base"):
        raise InputError(f"configs/refzom.py has no variant {variant!r}; expected none or 'base'")
    return Config(
        model=ModelConfig(pretrained="weights/beit3_base"),
        data=DataConfig(
            name="refzom",
            data_dir="data/prepared",
            tokenizer="weights/beit3.spm",
            validation_splits=("test",),
            eval_splits=("test",),
            max_targets=16,
        ),
        eval=EvalConfig(task="refzom"),
        train=TrainConfig(seed=6666, batch_size=16, num_epochs=10, eval_every_epochs=1, checkpoint_every_epochs=1),
    )
