"""Finds the checkpoint directory of a name, a file or a folder, and downloads and converts what is missing."""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType

from convert import official, recognize
from instancevg_jax import config as configs
from instancevg_jax.checkpoint import find_checkpoint, is_checkpoint
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError, first_line
from instancevg_jax.files import write_atomically
from instancevg_jax.inputs.tokenizer import Tokenizer
from instancevg_jax.runtime.compilation import cache_directory

SCHEME = "hf://"
TOKENIZER = "beit3.spm"
TOKENIZER_URL = "https://github.com/addf400/files/releases/download/beit3/beit3.spm"
MAX_TOKENIZER_BYTES = 16 << 20


@dataclass(frozen=True)
class Known:
    """Weights that their authors published.

    Attributes:
        file: its name, in any folder of the repository.
        config: a config of configs/, with its variant.
        repository: on the Hugging Face hub; "" for a file that is not there.
        url: folder of a file that is not on the hub.
        licence: that of the repository that publishes it.
        source: the page that names the file.
    """

    file: str
    config: str
    repository: str = ""
    url: str = ""
    licence: str = "MIT"
    source: str = "https://github.com/Dmmm1997/InstanceVG"


_HUB = "Dmmm997/InstanceVG"
_BEIT3 = "https://github.com/microsoft/unilm/tree/master/beit3"
_RELEASE = "https://github.com/addf400/files/releases/download/beit3/"
KNOWN = {
    "instancevg-grefcoco": Known("InstanceVG-grefcoco.pth", "grefcoco", _HUB),
    "instancevg-refcoco": Known("InstanceVG-B-refcoco.pth", "refcoco", _HUB),
    "instancevg-refcoco-large": Known("InstanceVG-L-refcoco.pth", "refcoco:large", _HUB),
    "instancevg-refzom": Known("InstanceVG-refzom.pth", "refzom", _HUB),
    "instancevg-rrefcoco": Known("InstanceVG-rrefcoco.pth", "rrefcoco", _HUB),
    "beit3-base": Known("beit3_base_patch16_224.pth", "grefcoco", url=_RELEASE, source=_BEIT3),
    "beit3-large": Known("beit3_large_patch16_224.pth", "refcoco:large", url=_RELEASE, source=_BEIT3),
}


def local_checkpoint(source: str | Path, *, tokenizer: str | Path | None = None, config: Config | None = None) -> Path:
    """The checkpoint directory of `source`, converted and downloaded first where needed.

    Args:
        source: a checkpoint directory, a run folder, an official file (.pth, .zip, .safetensors), a file on the hub
            (hf://OWNER/REPOSITORY/PATH), or a name of `KNOWN`.
        tokenizer: beit3.spm for an official file. None: the one next to the file, in the cache, or downloaded from BEiT-3's page.
        config: of an official file. None: recognized from its tensors.

    Returns:
        A checkpoint directory. Files are converted once, into `cache_directory()`.

    Raises:
        InputError: nothing of that name, a file that is not recognized, or something is missing and there is no network.
    """
    name = str(source)
    if name in KNOWN and not os.path.lexists(name):
        known = KNOWN[name]
        chosen = config or recognize.official_config(known.config)
        record = cache_directory() / f"{name}.sha256"
        digest = record.read_text().strip() if record.is_file() else None
        directory = _directory(name, digest, tokenizer, chosen) if digest else None
        if directory and is_checkpoint(directory):
            return directory
        path = _download(name, known)
        found = official.digest(path)
        if digest not in (None, found):
            raise InputError(
                f"{path}: not the file of the first download (SHA-256 {digest}); delete {record} to accept it"
            )
        write_atomically(record, found.encode())
        return _converted(name, path, tokenizer, chosen)
    path = local_file(name)
    if is_checkpoint(path):
        return find_checkpoint(path)
    if not os.path.lexists(path):
        raise InputError(
            f"{source}: no such file or directory; expected a path, built-in, or one of {', '.join(KNOWN)}"
        )
    return _converted(path.stem, path, tokenizer, config)


def _converted(name: str, path: Path, tokenizer: str | Path | None, config: Config | None) -> Path:
    """The checkpoint directory of an official file, which is converted if necessary."""
    directory = _directory(name, official.digest(path), tokenizer, config)
    if is_checkpoint(directory):
        return directory
    weights = official.read(path)
    config = config or recognize.config_of(weights.found, str(path))
    spm = find_tokenizer(path, tokenizer, config, download=True)
    print(f"converting {path} ({weights.found}) to {directory}, once", file=sys.stderr)
    official.convert(weights, config, Tokenizer.from_file(spm), directory, path.name, report=lambda line: None)
    return directory


def _directory(name: str, digest: str, tokenizer: str | Path | None, config: Config | None) -> Path:
    """The directory for the conversion of a file with this digest, which depends on the tokenizer and the config too."""
    spm = official.digest(Path(tokenizer).expanduser()) if tokenizer else ""
    key = "\n".join((digest, spm, configs.to_json(config) if config else ""))
    return cache_directory() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def local_file(source: str) -> Path:
    """`source` itself if it is a path; for hf://OWNER/REPOSITORY/PATH the file in the hub's cache, downloaded if necessary.

    Raises InputError without a network, or for a file that is not there.
    """
    if not source.startswith(SCHEME):
        if "://" in source:
            raise InputError(f"{source}: expected a path or hf://OWNER/REPOSITORY/PATH")
        return Path(source).expanduser()
    parts = source.removeprefix(SCHEME).split("/")
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{source}: expected hf://OWNER/REPOSITORY/PATH")
    hub = _hub()
    try:
        return Path(hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except hub.errors.LocalEntryNotFoundError as error:
        raise InputError(f"{source}: no network, and not downloaded before") from error
    except Exception as error:  # its own errors and those of its HTTP library
        raise InputError(f"{source}: cannot be downloaded ({first_line(error)})") from error


def find_tokenizer(weights: Path, given: str | Path | None, config: Config, download: bool) -> Path:
    """The sentencepiece model of an official file: `given`, next to the file, the config's, in the cache, or downloaded."""
    if given:
        path = Path(given).expanduser()
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; expected {TOKENIZER}, from {TOKENIZER_URL}")
        return path
    for path in (weights.parent / TOKENIZER, Path(config.data.tokenizer), cache_directory() / TOKENIZER):
        if os.path.isfile(path):
            return path
    if not download:
        raise InputError(f"no tokenizer: give --tokenizer {TOKENIZER}, from {TOKENIZER_URL}")
    return official_tokenizer(f"no tokenizer next to {weights.name}: put {TOKENIZER} there")


def official_tokenizer(advice: str) -> Path:
    """beit3.spm in the cache, downloaded unless it is there. Raises InputError, starting with `advice`, without a network."""
    cached = cache_directory() / TOKENIZER
    if cached.is_file():
        return cached
    try:
        print(f"downloading {TOKENIZER_URL}", file=sys.stderr)
        with urllib.request.urlopen(TOKENIZER_URL, timeout=30) as answer:
            data = answer.read(MAX_TOKENIZER_BYTES)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise InputError(f"{advice}, from {TOKENIZER_URL} (cannot be reached from here)") from error
    Tokenizer.from_bytes(data, TOKENIZER_URL)
    write_atomically(cached, data)
    return cached


def _download(name: str, known: Known) -> Path:
    """The file of a known name in the hub's cache, downloaded if necessary."""
    if not known.repository:
        raise InputError(f"{name}: not on the hub; download {known.url}{known.file} and give the path of that file")
    print(f"{name}: {known.file} of {known.source}, licence {known.licence}", file=sys.stderr)
    try:
        hub = _hub()
        files = hub.HfApi().list_repo_files(known.repository)
        found = [file for file in files if PurePosixPath(file).name == known.file]
        if len(found) != 1:
            raise InputError(f"{name}: {len(found)} files {known.file} in {known.repository}; expected one")
        return Path(hub.hf_hub_download(known.repository, found[0]))
    except InputError:
        raise
    except Exception as error:  # its own errors and those of its HTTP library
        weights = f"hf download {known.repository} --include '*{known.file}' --local-dir weights"
        raise InputError(
            f"{name}: cannot be downloaded ({first_line(error)}); with a network run `{weights}` and "
            f"`curl -LO {TOKENIZER_URL}`, put both files into one folder, and give the path of {known.file}"
        ) from error


def _hub() -> ModuleType:
    """The library huggingface_hub, imported on first use because that takes about a second."""
    import huggingface_hub
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it would report every retry
    return huggingface_hub
