"""Serve a model: a web page and an HTTP API. `python -m instancevg_jax.serve --checkpoint DIR`, then open http://127.0.0.1:8000.

The page takes a picture and sentences and shows the answer; the API is described at /openapi.json. The server has no
authentication: it listens on 127.0.0.1 unless --host says otherwise.
"""

import argparse
import importlib.util
import math
from collections.abc import Sequence

from instancevg_jax.errors import InputError, run_command


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises InputError for bad arguments, a checkpoint that cannot be loaded, and missing packages."""
    args = _parser().parse_args(argv)
    missing = [
        name for name in ("fastapi", "uvicorn", "multipart", "prometheus_client") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise InputError(f"serving needs {missing[0]}; install it with pip install 'instancevg_jax[web]'")
    for name in ("max_megabytes", "max_seconds", "max_waiting"):
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}; expected a number above 0")

    from instancevg_jax.answers.predictor import Predictor
    from instancevg_jax.runtime.compilation import keep_compiled_programs
    from instancevg_jax.serving.app import Limits, create_app
    from instancevg_jax.serving.model import Model
    from instancevg_jax.serving.server import listen, server_of

    listening = listen(args.host, args.port)  # before the model is loaded, so that a port in use is known at once
    keep_compiled_programs()
    limits = Limits(body_bytes=round(args.max_megabytes * 1e6), body_seconds=args.max_seconds, waiting=args.max_waiting)
    model = Model(Predictor.from_pretrained(args.checkpoint))
    print("compiling the model ...", flush=True)
    model.warm_up()
    print(f"open http://{args.host}:{listening.getsockname()[1]}", flush=True)
    server_of(create_app(model, limits)).run(sockets=[listening])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--checkpoint",
        help="checkpoint directory, run, official file or name; default: the built-in model of drawn shapes",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is every network (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="port to listen on; 0 is any free one (default: 8000)")
    add("--max-megabytes", type=float, default=20.0, help="largest request in MB (default: 20)")
    add("--max-seconds", type=float, default=30.0, help="time for a request to arrive (default: 30)")
    add("--max-waiting", type=int, default=64, help="sentences that may wait; beyond, the answer is 429 (default: 64)")
    return parser


if __name__ == "__main__":
    run_command(main)
