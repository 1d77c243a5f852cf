"""RefCOCO, RefCOCO+ and RefCOCOg together (REC, RES); variants "base" and "large".

Source: configs/refcoco/InstanceVG-{B,L}-refcoco of the original.

python -m convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config configs/refcoco.py --tokenizer beit3.spm
python -m instancevg_jax.train --config configs/refcoco.py --workdir runs/refcoco
"""

from instancevg_jax.config import Config


def get_config(variant: str = "base") -> Config:
    """The original's settings, field by field; `tests/test_configs.py` lists both."""
    from configs.families import official

    return official("refcoco", variant)
