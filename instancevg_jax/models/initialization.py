"""First values of a network that is trained from scratch, drawn as the original draws them.

`OFFICIAL` is the whole rule book: every parameter's path matches exactly one of its patterns. A parameter is drawn by its path,
so its values depend on the seed, its path and its shape, and on nothing else in the network.

Sources: torch's `reset_parameters` of Linear, Conv2d, ConvTranspose2d and MultiheadAttention; mmcv's ConvModule; BEiT-3 in
torchscale and the original's models/vis_encs/beit; `init_weights` of the original's
models/heads/transformers/deformable_transformer.py; the original's models/heads/uni_gref_deformable_head.py.
"""

import math
import re
import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

Shape = tuple[int, ...]
# (key, the parameter's shape, the shape of the kernel in its module) -> first values, float32
Draw = Callable[[Array, Shape, Shape], Array]


def fan_in(kernel: Shape) -> int:
    """Inputs of one output: the kernel's last axis holds the outputs."""
    return math.prod(kernel[:-1])


def fan_out(kernel: Shape) -> int:
    """Outputs that one input takes part in."""
    return math.prod(kernel[:-2]) * kernel[-1]


def uniform(bound: Callable[[Shape], float]) -> Draw:
    """Uniform between -`bound` and `bound` of the kernel's shape."""
    return lambda key, shape, kernel: jax.random.uniform(key, shape, minval=-bound(kernel), maxval=bound(kernel))


def normal(std: Callable[[Shape], float]) -> Draw:
    """Normal with mean 0 and the standard deviation `std` of the kernel's shape."""
    return lambda key, shape, kernel: std(kernel) * jax.random.normal(key, shape)


def constant(value: float) -> Draw:
    """The same value everywhere."""
    return lambda key, shape, kernel: jnp.full(shape, value)


# kaiming_uniform(a=sqrt(5)), for kernels and biases alike; torch takes a transposed convolution's fan-in from its outputs
torch_uniform = uniform(lambda kernel: fan_in(kernel) ** -0.5)
torch_uniform_transposed = uniform(lambda kernel: math.prod(kernel[1:]) ** -0.5)
xavier_uniform = uniform(lambda kernel: math.sqrt(6 / (fan_in(kernel) + fan_out(kernel))))
xavier_normal = normal(lambda kernel: math.sqrt(2 / (fan_in(kernel) + fan_out(kernel))))
kaiming_normal_fan_out = normal(lambda kernel: math.sqrt(2 / fan_out(kernel)))
zeros, ones = constant(0.0), constant(1.0)


def truncated_normal(key: Array, shape: Shape, kernel: Shape) -> Array:
    """Normal with standard deviation 0.02, cut off at one standard deviation on either side, as in BEiT."""
    return 0.02 * jax.random.truncated_normal(key, -1.0, 1.0, shape)


def box_bias(key: Array, shape: Shape, kernel: Shape) -> Array:
    """torch's for the centre, -2 for width and height: boxes start small."""
    return torch_uniform(key, shape, kernel).at[2:].set(-2.0)


# Names of parameters as regular expressions, in which a dot stands for itself. None: what the module sets.
OFFICIAL: Mapping[str, Draw | None] = {
    r"backbone.class_token": zeros,
    r"backbone.(vision|text)_positions": normal(lambda _: 1.0),
    r"backbone.text_embed.embedding": normal(lambda table: table[-1] ** -0.5),
    r"backbone.patch_embed.(kernel|bias)": torch_uniform,
    r"backbone.blocks.\d+.\w+.(query|key|value|out|fc1|fc2).kernel": truncated_normal,
    r"backbone.blocks.\d+.\w+.(query|key|value|out|fc1|fc2).bias": zeros,
    r"(image|text)_proj.kernel": torch_uniform,
    r"(query_positions|class_head|global_mask_head).(kernel|bias)": torch_uniform,
    r"existence_head.layers.\d.(kernel|bias)": torch_uniform,
    r"box_head.layers.(\d.kernel|[01].bias)": torch_uniform,
    r"box_head.layers.2.bias": box_bias,
    r"pyramid.(up4_first|up4_second|up2).(kernel|bias)": torch_uniform_transposed,
    r"pyramid.levels.\d.(lateral|conv).kernel": kaiming_normal_fan_out,
    r"mask_decoder.stages.\d.conv\d.kernel": torch_uniform,
    r"queries.mlp.layers.\d.(kernel|bias)": torch_uniform,
    r"queries.text_to_image.\w+_attention.in_proj.kernel": xavier_uniform,
    r"queries.text_to_image.\w+_attention.out_proj.kernel": torch_uniform,
    r"queries.text_to_image.\w+_attention.(in|out)_proj.bias": zeros,
    r"queries.text_to_image.mlp.fc\d.(kernel|bias)": torch_uniform,
    r"decoder.reference_points.kernel": xavier_normal,
    r"decoder.reference_points.bias": zeros,
    r"decoder.layers.\d+.self_attention.(in|out)_proj.kernel": xavier_uniform,
    r"decoder.layers.\d+.self_attention.(in|out)_proj.bias": zeros,
    r"decoder.layers.\d+.cross_attention.(value|output)_proj.kernel": xavier_uniform,
    r"decoder.layers.\d+.cross_attention.(value|output)_proj.bias": zeros,
    r"decoder.layers.\d+.cross_attention.(attention_weights.(kernel|bias)|sampling_offsets.kernel)": zeros,
    r"decoder.layers.\d+.cross_attention.sampling_offsets.bias": None,
    r"decoder.layers.\d+.mlp.fc\d.kernel": xavier_uniform,
    r"decoder.layers.\d+.mlp.fc\d.bias": torch_uniform,
    r"(\S+.)?(\w*norm\d?|norms.\d).scale": ones,
    r"(\S+.)?(\w*norm\d?|norms.\d).bias": zeros,
}
# The original builds these parts as copies of one module, so the copies start with equal values.
COPIES: Mapping[str, str] = {
    r"queries.text_to_image.(self|cross)_attention": "queries.text_to_image.attention",
    r"decoder.layers.\d+.mlp.(fc\d).bias": r"decoder.layers.mlp.\1.bias",
}


def draw_official(model: nnx.Module, key: Array) -> None:
    """Replace every parameter of an InstanceVG by the original's first values. Statistics of BatchNorm stay 0 and 1."""
    params = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    shapes = {path: param.shape for path, param in params.items()}
    for path, param in params.items():
        draw = rule(path)
        if draw is not None:
            kernel = shapes.get(f"{path.rpartition('.')[0]}.kernel", shapes[path])
            param.set_value(draw(jax.random.fold_in(key, _number(path)), shapes[path], kernel))


def rule(path: str) -> Draw | None:
    """The rule of the parameter at `path`. Raises ValueError unless exactly one pattern matches it."""
    found = [draw for pattern, draw in OFFICIAL.items() if re.fullmatch(pattern.replace(".", r"\."), path)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rules of initialization.OFFICIAL match the parameter {path}; expected one")
    return found[0]


def _number(path: str) -> int:
    """The number that a path adds to the random key; equal for copies."""
    for pattern, name in COPIES.items():
        path = re.sub(pattern.replace(".", r"\."), name, path)
    return zlib.crc32(path.encode())
