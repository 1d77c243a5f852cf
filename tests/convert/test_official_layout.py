"""Files of real torch, in the official layouts -> the command -> the original's outputs (F3), or every weight in its place."""

import sys

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.convert import make_tokenizer
from convert import __main__ as command
from convert import beit3, official, recognize, rules
from data_pipelines.shapes.dataset import TOKENIZER_PATH
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import load_model, load_pretrained
from instancevg_jax.config import Config, base, large
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.models.instancevg import InstanceVG
from instancevg_jax.models.positions import resize_positions
from instancevg_jax.runtime import trees
from tests import oracle
from tests.parity import models
from tests.parity.test_model import INPUTS

SIZES = [name if name.startswith("tiny") else pytest.param(name, marks=pytest.mark.slow) for name in INPUTS]


def save_as_the_original(torch, name: str, path) -> None:
    """Recipe weights with the entries of an epoch's checkpoint around them; shared modules share their storage."""
    arrays, manifest = oracle.state(name), oracle.manifest(name)
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    for key, entry in manifest.items():
        if entry["alias_of"]:
            state[key] = state[entry["alias_of"]]
    head = [torch.nn.Parameter(value) for key, value in state.items() if key.startswith("head.class_embed.0")]
    optimizer = torch.optim.Adam(head, lr=5e-4, amsgrad=True)
    sum(parameter.sum() for parameter in head).backward()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)
    checkpoint = {"epoch": 9, "best_F1score": np.float64(71.0), "best_gIoU": torch.tensor(70.5), "lr": 5e-5}
    checkpoint |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(checkpoint | {"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)


@pytest.mark.parametrize("name", SIZES)
def test_converted_model_gives_the_originals_outputs(name, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    save_as_the_original(torch, name, tmp_path / "latest.pth")
    (tmp_path / "config.json").write_text(configs.to_json(Config(model=models.CONFIGS[name])))
    words = ["convert", "instancevg", tmp_path / "latest.pth", tmp_path / "dir", "--config", tmp_path / "config.json"]
    make_tokenizer(tmp_path / "model.spm", models.CONFIGS[name].vocab_size)
    words += ["--tokenizer", tmp_path / "model.spm"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    command.main()
    graph, state = nnx.split(load_model(tmp_path / "dir")[0])
    outputs = jax.jit(lambda state, *batch: nnx.merge(graph, state)(*batch))(state, *models.inputs(*INPUTS[name]))
    expected = oracle.fixture(f"f3_{name}")
    step, suffix = (1, "") if name.startswith("tiny") else (4, "_s4")
    models.assert_close(outputs.class_logits[-1], expected["pred_class"], 5e-5, "pred_class")
    models.assert_close(outputs.boxes[-1], expected["pred_bbox"], 2e-6, "pred_bbox")
    models.assert_close(outputs.existence_logits, expected["nt_label"], 2e-5, "nt_label")
    models.assert_close(outputs.mask_logits[..., ::step, ::step], expected[f"pred_mask{suffix}"], 1e-4, "pred_mask")
    whole = outputs.global_mask_logits[:, None, ::step, ::step]
    models.assert_close(whole, expected[f"pred_global_mask{suffix}"], 1e-4, "pred_global_mask")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model_config"), [("base", base()), ("large", large())])
def test_beit3_of_full_size_fills_the_backbone(name, model_config, tmp_path, monkeypatch):
    """The official pretraining layout at 224 pixels; every weight arrives, only the position table is resized."""
    torch = pytest.importorskip("torch")
    manifest = oracle.manifest(f"beit3_{name}_patch16_224")["state_dict"]
    state = oracle.recipe().make_state(manifest, oracle.SEED)
    torch.save({"model": {key: torch.from_numpy(value) for key, value in state.items()}}, tmp_path / "beit3.zip")
    (tmp_path / "config.json").write_text(configs.to_json(Config(model=model_config)))
    words = ["convert", "beit3", tmp_path / "beit3.zip", tmp_path / "dir", "--config", tmp_path / "config.json"]
    make_tokenizer(tmp_path / "model.spm", model_config.vocab_size)
    words += ["--tokenizer", tmp_path / "model.spm"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    command.main()
    model = nnx.eval_shape(lambda: InstanceVG(model_config, rngs=nnx.Rngs(0)))
    load_pretrained(model, tmp_path / "dir")
    positions = f"beit3.{recognize.POSITIONS}"
    state[positions] = resize_positions(state[positions], (14, 14), (20, 20))
    leaves = {p: leaf for p, leaf in trees.flatten(nnx.state(model)).items() if p.startswith(official.BACKBONE)}
    found = rules.assign(state, beit3.TABLE, {path: leaf.shape for path, leaf in leaves.items()})
    assert not found.problems()
    for path, (key, rule) in found.assigned.items():
        assert np.array_equal(leaves[path], rules.FORWARD[rule.transform](state[key])), key


def test_a_tokenizer_of_official_size(tmp_path):
    make_tokenizer(tmp_path / "model.spm", 64003)
    tokenizer = Tokenizer.from_file(tmp_path / "model.spm")
    assert tokenizer.vocab_size == 64003
    real, _ = Tokenizer.from_file(TOKENIZER_PATH).encode("the red circle", 20)
    assert np.array_equal(tokenizer.encode("the red circle", 20)[0], real)
