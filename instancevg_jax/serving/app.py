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
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instancevg_jax.errors import InputError
from instancevg_jax.runtime.version import __version__
from instancevg_jax.serving.batching import Batcher, Busy
from instancevg_jax.serving.limits import BodyLimits
from instancevg_jax.serving.model import Model, SentenceRequest
from instancevg_jax.serving.schema import About, Answer, Failure

FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The picture cannot be read, or a sentence or the form is not as expected."},
    408: {"model": Failure, "description": "The request took too long to arrive."},
    413: {"model": Failure, "description": "The request is too large."},
    422: {"model": Failure, "description": "A field of the form is missing or out of range."},
    429: {"model": Failure, "description": "Too many sentences are waiting. Try again after a second."},
}


@dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    body_bytes: int = 20 * 10**6
    body_seconds: float = 30.0  # for a request to arrive
    sentence_characters: int = 1000
    sentences: int = 16  # per request
    waiting: int = 64  # sentences that may wait for the model; beyond, the answer is 429


class _Counters:
    """Counters of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("requests_total", "Requests by status.", ["status"], registry=self.registry)
        self.sentences = Counter("sentences_total", "Sentences answered.", registry=self.registry)
        self.seconds = Histogram("request_seconds", "Time to answer a request.", registry=self.registry)
        self.waiting = Gauge("sentences_waiting", "Sentences that wait for the model.", registry=self.registry)


class _Counted:
    """ASGI middleware that counts and times the requests."""

    def __init__(self, app: ASGIApp, metrics: _Counters) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(str(message["status"])).inc()
            await send(message)

        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        with self._metrics.seconds.time():
            await self._app(scope, receive, counted)


def create_app(model: Model, limits: Limits) -> FastAPI:
    """The application around a model."""
    metrics = _Counters()
    batcher = Batcher(model.answer, model.max_batch, limits.waiting)
    metrics.waiting.set_function(lambda: batcher.depth)

    @contextlib.asynccontextmanager
    async def working(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = FastAPI(title="instancevg_jax", version=__version__, lifespan=working)
    app.add_middleware(BodyLimits, max_bytes=limits.body_bytes, seconds=limits.body_seconds)
    app.add_middleware(_Counted, metrics=metrics)
    page = (resources.files("instancevg_jax.serving") / "page.html").read_text("utf-8")
    _answer_errors(app)

    @app.post("/v1/ground", response_model=None, responses={200: {"model": Answer}, **FAILURES})
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
        await asyncio.to_thread(model.check, data, picture.filename or "the picture")
        results: list[dict[str, Any]] = []
        for result in await batcher.ask_all(
            [SentenceRequest(data, text, score_threshold, all_queries) for text in sentence]
        ):
            if isinstance(result, InputError):
                raise result
            results.append(result)
        metrics.sentences.inc(len(results))
        return {"height": results[0]["height"], "width": results[0]["width"], "results": results}

    @app.get("/v1/model", response_model=None, responses={200: {"model": About}})
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
        return Response(drawn, media_type="image/png") if drawn else _failure(404, "no such example")

    return app


def _failure(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def _answer_errors(app: FastAPI) -> None:
    """Every error is JSON with one sentence."""

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return _failure(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _failure(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return _failure(error.status_code, error.detail)

    @app.exception_handler(Busy)
    async def busy(_: Request, error: Busy) -> JSONResponse:
        del error
        return _failure(429, "too many sentences are waiting; try again", {"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        del error  # the server logs it
        return _failure(500, "the server failed; its log has the reason")
