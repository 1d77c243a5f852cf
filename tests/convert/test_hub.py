"""From a name, a file or a folder to a checkpoint directory, with a stand-in for the hub on this machine."""

import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.convert import make_tokenizer
from convert import hub, official
from convert.hub import Known, local_checkpoint
from convert.torch_file import writer
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import load_model, load_provenance, load_tokenizer
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from tests import oracle

TINY = Config(model=configs.tiny())


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no tokenizer to download."""
    monkeypatch.setenv("INSTANCEVG_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "TOKENIZER_URL", "http://127.0.0.1:9/beit3.spm")
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The tiny model's official file with its tokenizer next to it."""
    (tmp_path / "weights").mkdir()
    writer.write_checkpoint(tmp_path / "weights" / "tiny.pth", oracle.state("tiny"))
    make_tokenizer(tmp_path / "weights" / "beit3.spm", 256)
    return tmp_path / "weights"


def test_a_file_is_converted_once(folder, cache, monkeypatch, capfd):
    directory = local_checkpoint(folder / "tiny.pth", config=TINY)
    model, config = load_model(directory)
    assert np.array_equal(model.text_proj.kernel[...], oracle.state("tiny")["head.lan_embedding.weight"].T)
    assert config == TINY
    assert load_tokenizer(directory).model_bytes == (folder / "beit3.spm").read_bytes()
    out, err = capfd.readouterr()
    assert not out  # it may be JSON's
    assert err.startswith(
        f"converting {folder / 'tiny.pth'} (InstanceVG, 2 blocks of width 64, 64 x 64 pixels, 10 queries)"
    )
    monkeypatch.setattr(official, "convert", None)
    assert local_checkpoint(folder / "tiny.pth", config=TINY) == directory
    (folder / "tiny.pth").rename(folder / "renamed.pth")
    assert not capfd.readouterr().err


def test_another_file_config_or_tokenizer_is_another_conversion(folder, cache):
    wide = dataclasses.replace(TINY, train=configs.TrainConfig(seed=1))
    make_tokenizer(folder / "other.spm", 255)
    found = [
        local_checkpoint(folder / "tiny.pth", config=TINY),
        local_checkpoint(folder / "tiny.pth", config=wide),
        local_checkpoint(str(folder / "tiny.pth"), config=TINY, tokenizer=folder / "other.spm"),
    ]
    state = oracle.state("tiny")
    state["head.class_embed.0.bias"] = state["head.class_embed.0.bias"] + 1
    for i in (1, 2):
        state[f"head.class_embed.{i}.bias"] = state["head.class_embed.0.bias"]
    writer.write_checkpoint(folder / "tiny.pth", state)
    found.append(local_checkpoint(folder / "tiny.pth", config=TINY))
    assert len(set(found)) == len(list(cache.iterdir())) == 4


def test_safetensors_and_an_unpacked_archive(folder):
    save_file(oracle.state("tiny"), folder / "model.safetensors")
    with zipfile.ZipFile(folder / "tiny.pth") as file:
        file.extractall(folder / "unpacked")
    (folder / "unpacked" / "beit3.spm").write_bytes((folder / "beit3.spm").read_bytes())
    expected = oracle.state("tiny")["head.bbox_embed.0.layers.0.weight"].T
    for name in ("model.safetensors", "unpacked/archive"):
        model, _ = load_model(local_checkpoint(folder / name, config=TINY))
        assert np.array_equal(model.box_head.layers[0].kernel[...], expected)


def test_a_backbone_is_a_checkpoint_to_start_from(folder):
    state = {key.removeprefix("vis_enc."): value for key, value in oracle.state("tiny").items() if "beit3" in key}
    writer.write_checkpoint(folder / "beit3.zip", state, wrapper="model")
    directory = local_checkpoint(folder / "beit3.zip", config=TINY)
    assert load_provenance(directory)["converted_from"] == "beit3"


def test_paths_that_are_checkpoints_already(folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    local_checkpoint(folder / "tiny.pth", config=TINY).rename(run / "checkpoint")
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in (run, run / "checkpoint", run / "checkpoint" / "config.json", "~/run", f"{run}/"):
        assert local_checkpoint(source) == run / "checkpoint", source


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere", "nowhere: no such file or directory; expected a path, built-in, or one of instancevg-g"),
        ("beit3-base", "not on the hub; download https://github.com/addf400/.*beit3_base_patch16_224.pth and give"),
        ("https://huggingface.co/x/y.pth", "expected a path or hf://OWNER/REPOSITORY/PATH"),
        ("hf://x/y.pth", "expected hf://OWNER/REPOSITORY/PATH"),
        ("a" * 5000, "no such file or directory|File name too long"),
    ],
)
def test_what_is_not_there(source, says):
    with pytest.raises(InputError, match=says) as error:
        local_checkpoint(source)
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_is_named_with_its_address(folder, cache, monkeypatch):
    (folder / "beit3.spm").rename(folder / "kept.spm")
    with pytest.raises(InputError, match=r"no tokenizer next to tiny\.pth: put beit3\.spm there, from http://127"):
        local_checkpoint(folder / "tiny.pth", config=TINY)
    monkeypatch.setattr(hub, "TOKENIZER_URL", (folder / "kept.spm").as_uri())
    assert load_tokenizer(local_checkpoint(folder / "tiny.pth", config=TINY)).vocab_size == 256
    assert (cache / "beit3.spm").read_bytes() == (folder / "kept.spm").read_bytes()
    monkeypatch.setattr(hub, "TOKENIZER_URL", (folder / "tiny.pth").as_uri())
    (cache / "beit3.spm").unlink()
    with pytest.raises(InputError, match="not a sentencepiece model"):
        local_checkpoint(folder / "tiny.pth", config=dataclasses.replace(TINY, train=configs.TrainConfig(seed=1)))


def test_every_known_name_has_a_config():
    for known in hub.KNOWN.values():
        config = hub.recognize.official_config(known.config)
        assert ("large" in known.config) == (config.model.width == 1024)
        assert bool(known.repository) != bool(known.url)


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download uses, for one repository of one file."""

    content = b""
    commit = "0" * 40

    def do_GET(self):
        if "/api/models/" in self.path:
            files = [{"rfilename": name} for name in (".gitattributes", "gres/run/Tiny.pth")]
            entries = [{"type": "file", "path": file["rfilename"], "size": 1, "oid": "0" * 40} for file in files]
            body = entries if "/tree/" in self.path else {"id": "o/r", "sha": self.commit, "siblings": files}
            self.answer(json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif self.path.endswith("/gres/run/Tiny.pth"):
            start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
            etag = f'"{hashlib.sha256(self.content).hexdigest()}"'
            self.answer(self.content[start:], {"ETag": etag, "X-Repo-Commit": self.commit}, 206 if start else 200)
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, body: bytes, headers: dict[str, str], status: int = 200):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


CHILD = """
import sys
from convert import hub, recognize
from instancevg_jax import config as configs
from instancevg_jax.errors import run_command
recognize.official_config = lambda name: configs.Config(model=configs.tiny())
hub.KNOWN = {"tiny": hub.Known("Tiny.pth", "grefcoco", "o/r")}
run_command(lambda: print(hub.local_checkpoint("tiny", tokenizer=sys.argv[1])))
"""


def ask(folder: Path, tmp_path: Path, endpoint: str) -> subprocess.CompletedProcess:
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CHILD, str(folder / "beit3.spm")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=300)


def test_a_known_name_is_downloaded_once(folder, tmp_path, cache, server):
    Hub.content = (folder / "tiny.pth").read_bytes()
    first = ask(folder, tmp_path, server)
    assert first.returncode == 0, first.stderr
    directory = Path(first.stdout.strip())
    digest = hashlib.sha256(Hub.content).hexdigest()
    assert load_provenance(directory)["sha256"] == digest == (cache / "tiny.sha256").read_text()
    assert ask(folder, tmp_path, "http://127.0.0.1:9").stdout == first.stdout  # from the cache, without a question

    for name in ("params", "provenance.json"):
        (directory / name).rename(tmp_path / name)
    Hub.content, Hub.commit = Hub.content + b"\0", "1" * 40  # published anew, or tampered with
    changed = ask(folder, tmp_path, server)
    assert changed.returncode == 2
    assert f"not the file of the first download (SHA-256 {digest}); delete {cache / 'tiny.sha256'}" in changed.stderr


def test_without_a_network_two_commands_are_named(folder, tmp_path):
    answer = ask(folder, tmp_path, "http://127.0.0.1:9")
    assert answer.returncode == 2
    line = answer.stderr.strip().splitlines()[-1]
    assert line.startswith("error: tiny: cannot be downloaded (")
    assert "`hf download o/r --include '*Tiny.pth' --local-dir weights` and `curl -LO https://github.com/" in line


def test_a_repository_without_the_file(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_: ["README.md", "other.pth"])
    monkeypatch.setitem(hub.KNOWN, "tiny", Known("Tiny.pth", "grefcoco", "o/r"))
    with pytest.raises(InputError, match=r"^tiny: 0 files Tiny\.pth in o/r; expected one$"):
        local_checkpoint("tiny")
