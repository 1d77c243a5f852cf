"""The HTTP API with the built-in model: answers, limits, bad requests, and clients that misbehave."""

import asyncio
import io
import socket
import threading
import time

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from data_pipelines.shapes.dataset import ShapesDataset
from instancevg_jax import serve
from instancevg_jax.answers.predictor import Predictor
from instancevg_jax.errors import InputError
from instancevg_jax.serving.app import Limits, create_app
from instancevg_jax.serving.model import Model
from instancevg_jax.serving.schema import About, Answer
from instancevg_jax.serving.server import running

SCENE = ShapesDataset("test", "basic", (96, 96))[7]  # "three green circles"


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def predictor():
    return Predictor.from_pretrained(batch_size=4)


@pytest.fixture(scope="module")
def client(predictor):
    limits = Limits(body_bytes=200_000, sentence_characters=100, sentences=4)
    with TestClient(create_app(Model(predictor), limits)) as client:
        yield client


def ask(client, *sentences: str, data: bytes = b"", **fields: str):
    files = {"picture": ("scene.png", data or png(SCENE.image), "image/png")}
    return client.post("/v1/ground", files=files, data={"sentence": list(sentences), **fields})


def test_the_answer_is_the_predictors(client, predictor):
    response = ask(client, SCENE.expression)
    assert response.status_code == 200
    expected = predictor.predict(SCENE.image, SCENE.expression).to_json()
    assert len(expected["objects"]) == 3
    assert response.json() == {"height": 96, "width": 96, "results": [expected]}


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.94, 1.0])
def test_thresholds(client, predictor, threshold):
    found = ask(client, "everything red", score_threshold=str(threshold)).json()["results"][0]
    assert found == predictor.predict(SCENE.image, "everything red", score_threshold=threshold).to_json()


def test_several_sentences_in_order_and_all_queries(client):
    response = ask(client, "the red circle", "all yellow rings", all_queries="true").json()
    assert Answer.model_validate(response).model_dump() == response  # the schema has every field
    results = response["results"]
    assert [one["expression"] for one in results] == ["the red circle", "all yellow rings"]
    rows, columns = results[0]["heat"]["size"]
    assert len(results[0]["heat"]["values"]) == rows * columns
    assert results[0]["global_mask"]["size"] == [96, 96]


@pytest.mark.parametrize(
    ("sentences", "fields", "status", "says"),
    [
        (["..."], {}, 400, "contains no words"),
        (["a"] * 5, {}, 400, "5 sentences; expected at most 4"),
        (["a " * 60], {}, 400, "120 characters; expected at most 100"),
        (["a"], {"data": b"<html>"}, 400, "scene.png: not a picture"),
        (["a"], {"data": png(SCENE.image)[:3000]}, 400, "damaged or truncated"),
        (
            ["a"],
            {"data": png(np.zeros((5001, 5000), np.uint8))},
            400,
            "too large (5000 x 5001); expected at most 25000000",
        ),
        (["a"], {"data": b"\x00" * 300_000}, 413, "larger than 200000 bytes"),
        (["a"], {"score_threshold": "2"}, 422, "score_threshold"),
        ([], {}, 422, "sentence"),
    ],
)
def test_bad_requests_get_one_sentence(client, sentences, fields, status, says):
    response = ask(client, *sentences, **fields)
    assert response.status_code == status
    assert says in response.json()["error"]


def test_pages_and_counters(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert "drawn shapes" in client.get("/v1/model").json()["description"]
    assert '<form id="ask">' in client.get("/").text
    for example in client.get("/v1/model").json()["examples"]:
        assert Image.open(io.BytesIO(client.get(f"/examples/{example['name']}").content)).size == (96, 96)
    assert client.get("/examples/x.png").json() == {"error": "no such example"}
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    about = client.get("/v1/model").json()
    assert About.model_validate(about).model_dump() == about
    assert 'requests_total{status="200"}' in client.get("/metrics").text
    assert "/v1/ground" in client.get("/openapi.json").json()["paths"]


@pytest.fixture
def server(predictor, monkeypatch):
    """A real server with short limits; its port."""
    monkeypatch.setattr("instancevg_jax.serving.server.IDLE_SECONDS", 1)
    with running(create_app(Model(predictor), Limits(body_seconds=1.0, waiting=3))) as address:
        yield int(address.rpartition(":")[2])


def fetch(address: str) -> str:
    return httpx2.get(address).text


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def closed_by_server(client: socket.socket, data: bytes) -> bool:
    """Whether the server has closed the connection; sends it a little otherwise."""
    time.sleep(0.1)
    try:
        client.sendall(data)
    except OSError:
        return True
    return False


HEAD = b"POST /v1/ground HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n"


def test_slow_clients_and_clients_that_go_away(server):
    with socket.create_connection(("127.0.0.1", server)) as slow:
        slow.sendall(HEAD + b"--b")
        slow.settimeout(10)
        assert b" 408 " in slow.recv(4096)
    with socket.create_connection(("127.0.0.1", server)) as endless:
        wait_for(lambda: closed_by_server(endless, b"GET"))  # a head that never ends
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server)) as gone:
            gone.sendall(HEAD)
    with socket.create_connection(("127.0.0.1", server)) as alive:
        alive.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'{"status":"ok"}' in b"".join(iter(lambda: alive.recv(4096), b""))


def test_questions_of_clients_that_went_away_are_not_answered():
    started, released, seen = threading.Event(), threading.Event(), []

    class Slow(Model):
        max_batch = 1

        def __init__(self):
            """Answers nothing until `released`."""

        def answer(self, questions):
            started.set()
            released.wait(20)
            seen.extend(question.sentence for question in questions)
            return [{"height": 1, "width": 1} for _ in questions]

    def send(sentence: str) -> socket.socket:
        body = (
            (
                f'--b\r\nContent-Disposition: form-data; name="sentence"\r\n\r\n{sentence}\r\n--b\r\nContent-Disposition: '
                'form-data; name="picture"; filename="a.png"\r\n\r\n'
            ).encode()
            + png(SCENE.image)
            + b"\r\n--b--\r\n"
        )
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(HEAD.replace(b"1000", str(len(body)).encode()) + body)
        return client

    with running(create_app(Slow(), Limits())) as address:
        port = int(address.rpartition(":")[2])
        first = send("first")
        assert started.wait(20)
        gone, last = [send("gone") for _ in range(5)], send("last")
        waiting = f"{address}/metrics"
        wait_for(lambda: "sentences_waiting 6.0" in fetch(waiting))
        for client in gone:
            client.close()
        wait_for(lambda: "sentences_waiting 1.0" in fetch(waiting))
        released.set()
        for client in (first, last):
            with client:
                assert b" 200 " in client.recv(4096)
    assert seen == ["first", "last"]


def test_too_many_at_once_are_refused_and_the_others_answered(server):
    async def many():
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server}", timeout=60) as client:
            files = {"picture": ("scene.png", png(SCENE.image))}
            asked = [client.post("/v1/ground", files=files, data={"sentence": "the red circle"}) for _ in range(24)]
            return [response.status_code for response in await asyncio.gather(*asked)]

    statuses = asyncio.run(many())
    assert set(statuses) == {200, 429}


def test_bad_options_are_one_line(server):
    for arguments, says in (
        (["--port", str(server)], f"--port {server}: cannot listen there"),
        (["--port", "99999"], "--port 99999: cannot listen there"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid --port 8000: cannot listen there"),
        (["--max-seconds", "nan"], "--max-seconds is nan; expected a number above 0"),
        (["--max-waiting", "0"], "--max-waiting is 0; expected a number above 0"),
    ):
        with pytest.raises(InputError, match=says):
            serve.main(arguments)
