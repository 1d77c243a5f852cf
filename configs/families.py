"""The official settings of the four families of data sets. The commands read configs/{grefcoco,refcoco,refzom,rrefcoco}.py."""

from instancevg_jax.config import Config, DataConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig, base, large
from instancevg_jax.errors import InputError

SPLITS = {
    "grefcoco": ("val", "testA", "testB"),
    "refcoco": (
        "val_refcoco_unc",
        "testA_refcoco_unc",
        "testB_refcoco_unc",
        "val_refcocoplus_unc",
        "testA_refcocoplus_unc",
        "testB_refcocoplus_unc",
        "val_refcocog_umd",
        "test_refcocog_umd",
    ),
    "refzom": ("test",),
    "rrefcoco": ("val_rrefcoco", "val_rrefcocoplus", "val_rrefcocog"),
}
TASKS = {"grefcoco": "gres", "refcoco": "refcoco", "refzom": "refzom", "rrefcoco": "rrefcoco"}


def official(family: str, variant: str) -> Config:
    """What the original trains `family` with. `variant`: "base", or for RefCOCO "large" too."""
    variants = ("base", "large") if family == "refcoco" else ("base",)
    if variant not in variants:
        raise InputError(f"configs/{family}.py has no variant {variant!r}; expected one of {', '.join(variants)}")
    model = large() if variant == "large" else base()
    model.pretrained = f"weights/beit3_{variant}"
    config = Config(
        model=model,
        loss=LossConfig(),
        data=DataConfig(
            name=family,
            data_dir="data/prepared",
            tokenizer="weights/beit3.spm",
            eval_splits=SPLITS[family],
            max_targets=16,
        ),
        optim=OptimConfig(),
        eval=EvalConfig(task=TASKS[family]),
        train=TrainConfig(seed=6666),
    )
    if family == "refcoco":
        model.num_queries, model.max_tokens = 1, 20
        config.loss.negative_masks = 0.0
        config.data.max_targets = 1
        config.optim.warmup_epochs, config.optim.decay_epochs = 3, (15,)
        config.train.num_epochs = 20
        config.train.batch_size = 4 if variant == "large" else 16
    return config
