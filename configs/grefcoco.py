"""gRefCOCO (GREC, GRES), base size. Source: configs/gres/InstanceVG-grefcoco.py of the original.

python -m convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config configs/grefcoco.py --tokenizer beit3.spm
python -m instancevg_jax.train --config configs/grefcoco.py --workdir runs/grefcoco
"""

from instancevg_jax.config import Config


def get_config(variant: str = "base") -> Config:
    """The original's settings, field by field; `tests/test_configs.py` lists both."""
    from configs.families import official

    return official("grefcoco", variant)
