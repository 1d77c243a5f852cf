"""Run an exported program with JAX: `python run.py PICTURE "SENTENCE"`. Needs jax, safetensors and what inputs.py needs."""

import sys
from pathlib import Path

import jax
import numpy as np
from inputs import load_settings, prepare, show
from safetensors.numpy import load_file

folder = Path(__file__).parent
program = jax.export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
parameters = load_file(folder / "parameters.safetensors")
found = jax.jit(program.call)(parameters, *prepare(folder, sys.argv[1], sys.argv[2]))
show({name: np.asarray(value) for name, value in found.items()}, load_settings(folder))
