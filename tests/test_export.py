"""The exported program gives what the model gives, for any batch, without this package."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from instancevg_jax import export, load_model
from instancevg_jax.answers.export import inference_fn, write_stablehlo
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "program"
    export.main(["--output", str(folder), "--platforms", "cpu,cuda"])
    return folder


def inputs(config, batch: int):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, config.model.image_height, config.model.image_width, 3), np.float32)
    ids = rng.integers(4, config.model.vocab_size, (batch, config.model.max_tokens)).astype(np.int32)
    return images, ids, np.arange(config.model.max_tokens)[None].repeat(batch, 0) < 6


def test_equal_outputs_for_any_batch(folder):
    model, config = load_model(DEMO_CHECKPOINT)
    infer, parameters = inference_fn(model, config)
    program = jax.export.deserialize(bytearray((folder / "program.stablehlo").read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda"}
    stored = load_file(folder / "parameters.safetensors")
    assert stored.keys() == parameters.keys()
    for batch in (1, 3):
        given = inputs(config, batch)
        expected, found = jax.jit(infer)(parameters, *given), program.call(stored, *given)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_runner_needs_only_its_folder(folder, tmp_path):
    scene = tmp_path / "scene.png"
    drawing = ["-m", "data_pipelines.draw_shapes", "--split", "test", "--index", "7", "--output", str(scene)]
    sentence = subprocess.run([sys.executable, *drawing], capture_output=True, text=True, check=True).stdout.strip()
    program = "import sys; sys.modules['instancevg_jax'] = None; sys.path.insert(0, sys.argv[1]); import runpy; "
    program += "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", program, str(folder), str(folder / "run.py"), str(scene), sentence]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert sentence == "three green circles"
    assert "\n3 objects" in answer, answer


def test_bad_arguments(folder):
    model, config = load_model(DEMO_CHECKPOINT)
    with pytest.raises(InputError, match="exists; choose another --output"):
        write_stablehlo(model, config, b"", folder)
    with pytest.raises(InputError, match="--platforms names 'gpu'; expected some of cpu, cuda, tpu"):
        write_stablehlo(model, config, b"", folder / "other", ("gpu",))
