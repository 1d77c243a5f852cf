"""Files from the Hugging Face hub: hf://OWNER/REPOSITORY/PATH."""

from pathlib import Path

from instancevg_jax.errors import InputError, first_line

SCHEME = "hf://"


def local_file(source: str) -> Path:
    """`source` itself if it is a path; for hf://OWNER/REPOSITORY/PATH the downloaded file (cached, resumed, with progress).

    Raises InputError, one line, without huggingface_hub, without a network, or for a file that is not there.
    """
    if not source.startswith(SCHEME):
        if "://" in source:
            raise InputError(f"{source}: expected a path or hf://OWNER/REPOSITORY/PATH")
        return Path(source)
    parts = source.removeprefix(SCHEME).split("/")
    if len(parts) < 3 or not all(parts):
        raise InputError(f"{source}: expected hf://OWNER/REPOSITORY/PATH")
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
        from huggingface_hub import errors  # pyright: ignore[reportMissingImports]
        from huggingface_hub.utils import logging  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        message = "needs the package huggingface_hub (pip install -e '.[web]'), or give a file that you have"
        raise InputError(f"{source}: {message}") from error
    logging.set_verbosity_error()  # its retries would say the same five times
    try:
        return Path(huggingface_hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
    except errors.LocalEntryNotFoundError as error:
        raise InputError(f"{source}: no network, and not downloaded before") from error
    except Exception as error:  # its own, and those of whichever library it sends requests with
        raise InputError(f"{source}: cannot be downloaded ({first_line(error)})") from error
