"""Throughput and latency of `instancevg serve` on loopback, next to sequential calls of `Predictor` in one process.

    python -m benchmarks.serve [--checkpoint DIR] [--requests 200]

Every request is one picture and one sentence. Prints a markdown table for 1, 4 and 16 clients: requests per second, the ratio to
the sequential calls of the same run, and the median and 99th percentile of the time per request.
"""

import argparse
import asyncio
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import httpx2
import numpy as np

from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.runtime.compilation import keep_compiled_programs

CLIENTS = (1, 4, 16)


def questions(count: int) -> list[tuple[bytes, str]]:
    """Drawn scenes as PNG files, each with its sentence."""
    scenes = ShapesDataset("test", "basic", (96, 96)).load(0, count)
    return [(cv2.imencode(".png", cv2.cvtColor(s.image, cv2.COLOR_RGB2BGR))[1].tobytes(), s.expression) for s in scenes]


def sequential(checkpoint: str | None, asked: list[tuple[bytes, str]]) -> list[float]:
    """Seconds of each call of `Predictor.predict`, as JSON values."""
    keep_compiled_programs()
    predictor = Predictor.from_pretrained(checkpoint)
    predictor.predict(*asked[0])
    seconds = []
    for picture, sentence in asked:
        start = time.perf_counter()
        predictor.predict(picture, sentence).to_json()
        seconds.append(time.perf_counter() - start)
    return seconds


async def served(address: str, asked: list[tuple[bytes, str]], clients: int) -> tuple[float, list[float]]:
    """Seconds in all, and of each request."""
    waiting, seconds = list(asked), []

    async def work(client: httpx2.AsyncClient) -> None:
        while waiting:
            picture, sentence = waiting.pop()
            start = time.perf_counter()
            files, data = {"picture": ("scene.png", picture)}, {"sentence": sentence}
            (await client.post("/v1/ground", files=files, data=data)).raise_for_status()
            seconds.append(time.perf_counter() - start)

    async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
        start = time.perf_counter()
        await asyncio.gather(*(work(client) for _ in range(clients)))
        return time.perf_counter() - start, seconds


def row(name: str, total: float, seconds: list[float], base: float) -> str:
    rate, (median, last) = len(seconds) / total, 1000 * np.percentile(seconds, [50, 99])
    return f"| {name} | {rate:.1f} | {rate / base:.2f} | {median:.0f} | {last:.0f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="checkpoint to serve; default: the built-in model")
    parser.add_argument("--requests", type=int, default=200, help="requests per row (default: 200)")
    args = parser.parse_args()
    asked = questions(args.requests)
    alone = sequential(args.checkpoint, asked)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "instancevg_jax.serve", "--port", str(port)]
    command += ["--checkpoint", args.checkpoint] if args.checkpoint else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        while "open http" not in server.stdout.readline():
            pass
        time.sleep(2)
        cpu = next(
            (x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), platform.processor()
        )
        print(f"{cpu.split(':')[-1].strip()}, {args.requests} requests per row\n")
        print("| | requests/s | ratio | median ms | p99 ms |\n|---|---|---|---|---|")
        base = len(alone) / sum(alone)
        print(row("`Predictor`, one after the other", sum(alone), alone, base))
        for clients in CLIENTS:
            total, seconds = asyncio.run(served(f"http://127.0.0.1:{port}", asked, clients))
            print(row(f"served, {clients} client{'s' * (clients > 1)}", total, seconds, base), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
