"""The HTTP API: a picture and sentences in, groundings out as JSON; and the page that uses it.

    curl -F picture=@street.jpg -F "sentence=the two people on the left" http://127.0.0.1:8000/v1/ground

The OpenAPI schema is at /openapi.json, liveness at /health, counters for Prometheus at /metrics.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from instancevg_jax.errors import InputError
from instancevg_jax.runtime.version import __version__
from instancevg_jax.serving.batching import Batcher, Busy
from instancevg_jax.serving.limits import BodyLimits
from instancevg_jax.serving.model import Model, SentenceRequest


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    body_bytes: int = 20 * 10**6
    body_seconds: float = 30.0  # for a request to arrive
    sentence_characters: int = 1000
    sentences: int = 16  # per request
    waiting: int = 64  # sentences that may wait for the model; beyond, the answer is 429
    decoding: int = 2  # pictures that are decoded at the same time


class _Counters:
    """Counters of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests_total", "Requests by status.", ["status"], registry=self.registry)
        self.sentences = Counter("sentences_total", "Sentences answered.", registry=self.registry)
        self.seconds = Histogram("request_seconds", "Time to answer a request.", registry=self.registry)
        self.waiting = Gauge("sentences_waiting", "Sentences that wait for the model.", registry=self.registry)


def create_app(model: Model, limits: Limits) -> FastAPI:
    """The application around a model."""
    metrics = _Counters()
    batcher = Batcher(model.answer, model.max_batch, limits.waiting)
    metrics.waiting.set_function(lambda: batcher.depth)
    decoding = asyncio.Semaphore(limits.decoding)

    @contextlib.asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = FastAPI(title="instancevg_jax", version=__version__, lifespan=working)
    app.add_middleware(BodyLimits, max_bytes=limits.body_bytes, seconds=limits.body_seconds)
    page = (resources.files("instancevg_jax.serving") / "page.html").read_text("utf-8")

    @app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        with metrics.seconds.time():
            response = await call_next(request)
        metrics.requests.labels(str(response.status_code)).inc()
        return response

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def bad_form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}"}, 422)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        del error
        return JSONResponse({"error": "too many sentences are waiting; try again"}, 429, {"Retry-After": "1"})

    @app.post("/v1/ground")
    async def ground(
        picture: Annotated[UploadFile, File(description="JPEG, PNG, WebP, ...")],
        sentence: Annotated[list[str], Form(description="one or several sentences")],
        score_threshold: Annotated[float | None, Form(ge=0, le=1, description="default: the model's own")] = None,
        all_queries: Annotated[bool, Form(description="return every query, with heat map and global mask")] = False,
    ) -> dict[str, Any]:
        """Find what each sentence refers to. Boxes and points are pixels of the picture; masks are COCO run-length encodings."""
        if len(sentence) > limits.sentences:
            raise InputError(f"the request has {len(sentence)} sentences; expected at most {limits.sentences}")
        if (longest := max(map(len, sentence))) > limits.sentence_characters:
            raise InputError(f"a sentence has {longest} characters; expected at most {limits.sentence_characters}")
        data = await picture.read()
        async with decoding:
            rgb = await asyncio.to_thread(model.decode, data, picture.filename or "the picture")
        questions = [SentenceRequest(rgb, text, score_threshold, all_queries) for text in sentence]
        results = await batcher.ask_all(questions)
        for result in results:
            if isinstance(result, InputError):
                raise result
        metrics.sentences.inc(len(results))
        return {"height": rgb.shape[0], "width": rgb.shape[1], "results": results}

    @app.get("/v1/model")
    async def about() -> dict[str, Any]:
        """What the model is, and its settings."""
        return model.about()

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def counters() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/examples/{name}", include_in_schema=False)
    async def example(name: str) -> Response:
        drawn = model.example(name)
        return Response(drawn, media_type="image/png") if drawn else JSONResponse({"error": "no such example"}, 404)

    return app
