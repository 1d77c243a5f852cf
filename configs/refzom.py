"""Ref-ZOM, base size. Source: configs/refzom/InstanceVG-refzom.py of the original.

python -m convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config configs/refzom.py --tokenizer beit3.spm
python -m instancevg_jax.train --config configs/refzom.py --workdir runs/refzom
"""

from instancevg_jax.config import Config


def get_config(variant: str = "base") -> Config:
    """The original's settings, field by field; `tests/test_configs.py` lists both."""
    from configs.families import official

    return official("refzom", variant)
