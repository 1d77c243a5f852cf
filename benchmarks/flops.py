"""Floating-point operations and bytes of a model: the compiler's count next to a formula, and what follows for accelerators.

    python -m benchmarks.flops [--batch 16]

The compiler's count is of the program before optimization, which needs no device and no compilation; multiplications and
additions count one each. The peer is the formula in `forward_flops`: matrix products and convolutions only, per example.
"""

import argparse
from typing import NamedTuple

import jax
from flax import nnx

from benchmarks.memory import abstract_batch
from configs import grefcoco, refcoco
from instancevg_jax.config import Config, ModelConfig
from instancevg_jax.errors import run_command
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.runtime import sharding
from instancevg_jax.training import optim, train_state


class Chip(NamedTuple):
    """Published peaks of one chip."""

    name: str
    flops: float  # per second, dense bfloat16
    bandwidth: float  # of its memory, bytes per second
    memory: float  # bytes
    link: float  # to other chips, bytes per second in all directions together


# Sources: Google Cloud's documentation of TPU v5e and v5p; NVIDIA's data sheet of H100 SXM.
SLICES = (
    (16, Chip("TPU v5e", 197e12, 819e9, 16e9, 200e9)),
    (64, Chip("TPU v5p", 459e12, 2765e9, 95e9, 600e9)),
    (8, Chip("H100 SXM", 989e12, 3.35e12, 80e9, 900e9)),
)


def forward_flops(model: ModelConfig) -> dict[str, float]:
    """Operations of one example's forward pass, by part; two for each multiplication with its addition."""
    patches = (model.image_height // model.patch_size) * (model.image_width // model.patch_size)
    width, head, queries = model.width, model.head_width, model.num_queries
    tokens = 1 + patches + model.max_tokens
    encoder = model.depth * (tokens * (4 * width**2 + 2 * width * model.mlp_dim) + 2 * tokens**2 * width)
    levels = ((16 * patches, head // 4), (4 * patches, head // 2), (patches, head), (patches / 4, head))
    upsampling = patches * (4 * head * head // 2) * 2 + 4 * patches * (4 * (head // 2) * (head // 4))
    pyramid = upsampling + sum(pixels * (inward * head + 9 * head**2) for pixels, inward in levels)
    mask_decoder = 21 * patches * 9 * 3 * head**2
    memory = sum(pixels for pixels, _ in levels)
    decoder = model.decoder_layers * (memory * head**2 + queries * (6 * head**2 + 2 * head * model.decoder_mlp_dim))
    grid = (4 * model.image_height // model.patch_size, 4 * model.image_width // model.patch_size)
    masks = 16 * patches * (queries * head + 2 * head**2)
    masks += (queries + 1) * (model.image_height * grid[0] * grid[1] + model.image_height * model.image_width * grid[1])
    parts = {
        "patch embedding": patches * 3 * model.patch_size**2 * width,
        "BEiT-3 encoder": encoder,
        "projections and queries": (patches + model.max_tokens) * width * head + 2 * patches * head**2,
        "feature pyramid": pyramid,
        "mask decoder": mask_decoder,
        "deformable decoder": decoder,
        "masks and existence": masks,
    }
    return {name: 2.0 * products for name, products in parts.items()}


def compiler_counts(config: Config, batch: int) -> tuple[float, float, int]:
    """FLOPs of a forward pass and of a training step of `batch` examples, by XLA, and the number of parameters."""
    model = nnx.eval_shape(lambda: InstanceVG(config.model, rngs=nnx.Rngs(0)))
    graph, params, stats = train_state.split_model(model)
    config.train.batch_size, mesh = batch, sharding.make_mesh()
    shapes = abstract_batch(config, mesh)

    def forward(params, stats, images, token_ids, token_mask):
        return nnx.merge(graph, params, stats)(images, token_ids, token_mask)

    lowered = jax.jit(forward).lower(params, stats, shapes.images, shapes.token_ids, shapes.token_mask)
    optimizer = optim.make_optimizer(config.optim, params, steps_per_epoch=1, num_steps=1)
    state = train_state.abstract(params, stats, optimizer, 0.0, mesh)
    step = train_state.make_train_step(graph, config, optimizer, mesh, state)
    analyses = [lowered.cost_analysis(), step.lower(state, shapes).cost_analysis()]
    forward_count, step_count = (float((analysis or {}).get("flops", float("nan"))) for analysis in analyses)
    return forward_count, step_count, sum(leaf.size for leaf in jax.tree.leaves(params))


def report(name: str, config: Config, batch: int, mfu: float) -> None:
    """Print one model's tables."""
    parts = forward_flops(config.model)
    formula = sum(parts.values())
    forward, step, params = compiler_counts(config, batch)
    print(
        f"\n{name}: {params / 1e6:.1f} M parameters, {config.model.image_height} x {config.model.image_width} pictures"
    )
    for part, count in parts.items():
        print(f"  {part:24} {count / 1e9:8.2f} GFLOP   {count / formula:5.1%}")
    print(f"  {'forward, formula':24} {formula / 1e9:8.2f} GFLOP per example")
    print(
        f"  {'forward, compiler':24} {forward / batch / 1e9:8.2f} GFLOP   {forward / batch / formula:.3f} of the formula"
    )
    print(f"  {'step, 3 x formula':24} {3 * formula / 1e9:8.2f} GFLOP per example")
    ratio = step / batch / formula / 3
    print(f"  {'step, compiler':24} {step / batch / 1e9:8.2f} GFLOP   {ratio:.3f} of 3 x the formula")
    scale(3 * formula * batch, params, batch, mfu)


def scale(work: float, params: int, batch: int, mfu: float) -> None:
    """Print what a step of `work` FLOPs per chip would take: arithmetic on published peaks, nothing measured."""
    state = 4 * 5 * params  # parameters, gradients and three moments of AMSGrad, float32
    traffic = 2 * state  # read and written once per step
    print(f"  state {state / 1e9:.2f} GB; {batch} examples per chip, {mfu:.0%} of the peak assumed")
    print(
        f"  {'':15} {'at peak':>9} {'expected':>9} {'examples/s':>10} {'state':>8} {'all-reduce':>10} {'FLOP/byte':>9}"
        f" {'balance':>7}"
    )
    for count, chip in SLICES:
        expected = work / chip.flops / mfu
        reduce = 2 * (count - 1) / count * 4 * params / (chip.link / 2)
        print(
            f"  {count:3} x {chip.name:9} {work / chip.flops * 1e3:6.1f} ms {expected * 1e3:6.1f} ms"
            f" {count * batch / expected:10.0f} {traffic / chip.bandwidth * 1e3:5.1f} ms {reduce * 1e3:7.1f} ms"
            f" {work / traffic:9.0f} {chip.flops / chip.bandwidth:7.0f}"
        )


def main() -> None:
    """The command: prints the tables of base and large."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flops", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="examples per chip")
    parser.add_argument("--mfu", type=float, default=0.4, help="the share of a chip's peak that is assumed")
    args = parser.parse_args()
    report("gRefCOCO, base", grefcoco.get_config(), args.batch, args.mfu)
    report("RefCOCO, large", refcoco.get_config("large"), args.batch, args.mfu)


if __name__ == "__main__":
    run_command(main)
