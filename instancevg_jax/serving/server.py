"""Running the application with uvicorn: in the foreground for the command, in a thread for notebooks, tests and benchmarks."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from instancevg_jax.errors import InputError

CONNECTIONS = 256  # open at the same time; beyond, the answer is 503
IDLE_SECONDS = 10  # between requests, for the head of one to arrive, and for a client to read on


class Connection(H11Protocol):
    """Uvicorn's connection, closed after IDLE_SECONDS in which no request is at work, or its answer is not read."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._restart()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._restart()

    def _restart(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        at_work = self.cycle is not None and not self.cycle.response_complete
        if not at_work or self.flow.write_paused:
            self.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 is any free one. Raises InputError if that is not possible."""
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason})") from error


def server_of(app: FastAPI) -> uvicorn.Server:
    """A server that has not started; `run(sockets=[...])` blocks until it ends."""
    config = uvicorn.Config(
        app, http=Connection, log_level="warning", timeout_keep_alive=IDLE_SECONDS, limit_concurrency=CONNECTIONS
    )
    return uvicorn.Server(config)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free port of 127.0.0.1 in a thread. Yields its address."""
    server, listening = server_of(app), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
