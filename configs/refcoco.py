"""RefCOCO, RefCOCO+ and RefCOCOg (REC and RES). Source: configs/refcoco/InstanceVG-{B,L}-refcoco.py of the original.

    instancevg prepare refcoco --annotations mixed-seg/instances_nogoogle_withid.json --images train2014 --data-dir data/prepared
    instancevg convert beit3 beit3_base_patch16_224.zip weights/beit3_base --config refcoco --tokenizer weights/beit3.spm
    instancevg train --config configs/refcoco.py --workdir runs/refcoco

| variant                          | size  | data                                         |
|----------------------------------|-------|----------------------------------------------|
| none, large                      | B, L  | the mixture of all three, as in the original |
| unc, unc_large                   | B, L  | RefCOCO alone, refs(unc).p                   |
| plus, plus_large                 | B, L  | RefCOCO+ alone, refs(unc).p                  |
| umd, umd_large                   | B, L  | RefCOCOg alone, refs(umd).p                  |
| google, google_large             | B, L  | RefCOCOg alone, refs(google).p               |

The original has no runs on a single set; these variants train with the mixture's settings. Each reads a data directory of its own,
data/prepared_VARIANT without "_large":

    instancevg prepare refcoco --annotations "refcoco/refs(unc).p" --images train2014 --data-dir data/prepared_unc
    instancevg train --config configs/refcoco.py:unc --workdir runs/refcoco_unc

Memory on one device, float32 (docs/scaling.md): base as configs/grefcoco.py; large 10.2 GiB of state and 4 GiB kept for the
backward pass. Published scores of the mixture: arXiv:2509.13747.
"""

from instancevg_jax.config import Config, DataConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig, base, large
from instancevg_jax.errors import InputError

# variant -> (validation splits, splits measured at the end)
SPLITS = {
    "": (
        ("val_refcoco_unc", "val_refcocoplus_unc", "val_refcocog_umd"),
        (
            "val_refcoco_unc",
            "testA_refcoco_unc",
            "testB_refcoco_unc",
            "val_refcocoplus_unc",
            "testA_refcocoplus_unc",
            "testB_refcocoplus_unc",
            "val_refcocog_umd",
            "test_refcocog_umd",
        ),
    ),
    "unc": (("val",), ("val", "testA", "testB")),
    "plus": (("val",), ("val", "testA", "testB")),
    "umd": (("val",), ("val", "test")),
    "google": (("val",), ("val",)),
}


VARIANTS = {
    "": ("", "base"),
    "base": ("", "base"),
    "large": ("", "large"),
    **{name: (name, "base") for name in SPLITS if name},
    **{f"{name}_large": (name, "large") for name in SPLITS if name},
}


def get_config(variant: str = "") -> Config:
    """The original's settings. All others are the defaults."""
    if variant not in VARIANTS:
        names = ", ".join(filter(None, VARIANTS))
        raise InputError(f"configs/refcoco.py has no variant {variant!r}; expected none or one of {names}")
    data, size = VARIANTS[variant]
    model = large() if size == "large" else base()
    model.pretrained = f"weights/beit3_{size}"
    model.num_queries = 1  # each sentence means exactly one object
    model.max_tokens = 20
    validation_splits, eval_splits = SPLITS[data]
    return Config(
        model=model,
        loss=LossConfig(negative_masks=0.0),
        data=DataConfig(
            name="refcoco",
            data_dir=f"data/prepared_{data}" if data else "data/prepared",
            tokenizer="weights/beit3.spm",
            validation_splits=validation_splits,
            eval_splits=eval_splits,
            max_targets=1,
        ),
        optim=OptimConfig(warmup_epochs=3, decay_epochs=(15,)),
        eval=EvalConfig(task="refcoco"),
        train=TrainConfig(
            seed=6666,
            batch_size=4 if size == "large" else 16,
            num_epochs=20,
            eval_every_epochs=1,
            checkpoint_every_epochs=1,
        ),
    )
