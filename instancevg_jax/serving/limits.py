"""Limits on request bodies: their size, and how long a client may take to send one. A client that goes away ends its request."""

import asyncio
import contextlib
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimits:
    """ASGI middleware. Answers 413 to a body of more than `max_bytes` and 408 to one that takes more than `seconds` to arrive.

    Work on a request is cancelled as soon as its client has disconnected.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body of an HTTP request within the limits, then hand it on."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            return await self._app(scope, receive, send)
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError:
            return await _refuse(send, 408, f"the request took more than {self._seconds:g} seconds to arrive")
        except ConnectionError:
            return None
        if body is None:
            return await _refuse(send, 413, f"the request is larger than {self._max_bytes} bytes")
        return await self._answer(scope, body, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None where it is too large."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application on a body, until it has answered or the client has gone."""
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.ensure_future(receive())  # after the body, the only message is that of a disconnect

        async def replay() -> Message:
            return pending.pop() if pending else await asyncio.shield(gone)

        answering = asyncio.ensure_future(self._app(scope, replay, send))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
        finally:
            for task in (answering, gone):
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering


async def _refuse(send: Send, status: int, reason: str) -> None:
    content = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
