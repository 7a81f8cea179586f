"""Captions from models: batches, questions, endpoints that fail, and the key that stays secret."""

from __future__ import annotations

import base64
import doctest
import io
import json
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from curate_helpers import picture, tiny_blip, tiny_llava
from PIL import Image

from diffalign.core import DiffalignError
from diffalign.curate import captioners
from diffalign.curate.captioners import QUESTION, EndpointCaptioner, load_captioner
from diffalign.data import image_sha256

KEY = "sk-not-for-anyone"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_blip(tmp_path_factory.mktemp("blip"))


def test_a_batch_is_captioned_as_each_image_alone(llava: Path) -> None:
    images = [picture(1), Image.new("L", (31, 33)), picture(3, (90, 41))]
    captioner = load_captioner(str(llava), max_new_tokens=5, batch_size=2)
    captions = captioner(images)
    assert captions == [captioner([image])[0] for image in images] and captioner([]) == []
    assert all(len(caption.split()) == 5 for caption in captions) and len(set(captions)) > 1


def test_the_question_is_asked_and_not_repeated(llava: Path) -> None:
    """A greedy answer by hand: the question's tokens go in, the likeliest token of each step comes out."""
    captioner = load_captioner(str(llava), max_new_tokens=3)
    text = f"user <image> {QUESTION} assistant"
    inputs = captioner.processor(text=text, images=picture(1), return_tensors="pt")
    tokens, expected = inputs["input_ids"], []
    for _ in range(3):
        logits = captioner.model(input_ids=tokens, pixel_values=inputs["pixel_values"]).logits
        expected.append(int(logits[0, -1].argmax()))
        tokens = torch.cat([tokens, torch.tensor([expected[-1:]])], 1)
    assert captioner([picture(1)]) == [captioner.processor.tokenizer.decode(expected)]
    other = load_captioner(str(llava), max_new_tokens=3, question="a b c d")
    assert other.identity != captioner.identity == load_captioner(str(llava), max_new_tokens=3).identity


def test_models_that_caption_unasked_are_not_asked(blip: Path) -> None:
    captioner = load_captioner(str(blip), max_new_tokens=4, batch_size=2)
    assert captioner.question == "" and len(captioner([picture(1), picture(2), picture(3)])) == 3
    with pytest.raises(DiffalignError, match="answers no questions"):
        load_captioner(str(blip), question="Is this a photograph?")


def test_the_identity_follows_the_weights(llava: Path, tmp_path: Path) -> None:
    name, weights = load_captioner(str(llava)).identity.split("/")[0].split("@")
    other = tiny_llava(tmp_path / llava.name, seed=1)
    assert load_captioner(str(other)).identity.startswith(f"{name}@") and name == llava.name
    assert weights not in load_captioner(str(other)).identity


def test_what_is_no_captioner_is_told(llava: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffalignError, match="cannot load"):
        load_captioner(str(tmp_path))
    with pytest.raises(DiffalignError, match="no folder"):
        load_captioner("no/such/model")
    with pytest.raises(DiffalignError, match="cannot use the device 'cuda:99'"):
        load_captioner(str(llava), device="cuda:99")
    with pytest.raises(DiffalignError, match="no chat template"):
        load_captioner(str(tiny_llava(tmp_path / "mute", template=None)))


class Server(HTTPServer):
    """Answers from a list of (status, body, headers); the last one for ever. Keeps what it was asked."""

    answers: list[tuple[int, Any, dict[str, str]]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def spec(self) -> str:
        return f"openai:org/model@2@http://127.0.0.1:{self.server_port}/v1/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(data)))
        answers = self.server.answers
        status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def said(text: Any) -> tuple[int, Any, dict[str, str]]:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}, {}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(captioners.time, "sleep", seconds.append)
    return seconds


def test_an_endpoint_sees_the_image_and_the_question(server: Server) -> None:
    server.answers = [said(" A <b>cat</b>\n on a mat ")]
    assert load_captioner(server.spec, max_new_tokens=17)([picture(1)]) == ["A cat on a mat"]
    ((path, headers, body),) = server.asked
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("org/model@2", 0, 17)
    image, text = body["messages"][0]["content"]
    encoded = image["image_url"]["url"].removeprefix("data:image/png;base64,")
    assert image_sha256(Image.open(io.BytesIO(base64.b64decode(encoded)))) == image_sha256(picture(1))
    assert text == {"type": "text", "text": QUESTION}


def test_answers_come_in_the_order_of_the_images(server: Server) -> None:
    server.answers = [said("one"), said(None), said([{"type": "text", "text": "in parts"}]), said("")]
    captioner = load_captioner(server.spec, batch_size=1)
    assert captioner([picture(n) for n in range(4)]) == ["one", "", "in parts", ""] and captioner([]) == []


def test_a_busy_endpoint_is_tried_again(server: Server, waits: list[float]) -> None:
    server.answers = [(429, {}, {"Retry-After": "7"}), (503, {}, {}), (500, {}, {"Retry-After": "soon"}), said("late")]
    assert load_captioner(server.spec)([picture(1)]) == ["late"] and waits == [7.0, 2.0, 4.0]
    waits.clear()
    server.answers = [(429, {}, {"Retry-After": "9999"})]
    with pytest.raises(DiffalignError, match="no answer in 4 tries; the last: status 429"):
        load_captioner(server.spec)([picture(1)])
    assert waits == [60.0] * 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, f"wrong key {KEY}".encode(), {}), r"status 401: wrong key \.\.\.; check"),
        ((302, {}, {"Location": "http://127.0.0.1:9/v1"}), "status 302"),
        ((200, b"<html>", {}), "OpenAI's form"),
        ((200, {"choices": []}, {}), "OpenAI's form"),
    ],
)
def test_refusals_are_told_at_once_and_without_the_key(
    answer: tuple[int, Any, dict[str, str]], message: str, server: Server, waits: list[float]
) -> None:
    server.answers = [answer]
    with pytest.raises(DiffalignError, match=message) as error:
        load_captioner(server.spec)([picture(1)])
    assert KEY not in str(error.value) and not waits and len(server.asked) == 1


def test_no_endpoint_is_told_after_the_retries(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DiffalignError, match="no answer in 4 tries"):
        EndpointCaptioner(model="a", url="http://127.0.0.1:9/v1", timeout=2)([picture(1)])
    assert waits == [1.0, 2.0, 4.0]


def test_the_key_is_no_part_of_the_captioner(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = load_captioner(server.spec)
    assert KEY not in repr(captioner) and KEY.encode() not in pickle.dumps(captioner)
    assert KEY not in captioner.identity and "127.0.0.1" not in captioner.identity
    monkeypatch.delenv("OPENAI_API_KEY")
    server.answers = [said("free")]
    assert captioner([picture(1)]) == ["free"] and "Authorization" not in server.asked[0][1]


def test_a_malformed_key_is_told_but_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(DiffalignError, match="no key has") as error:
        load_captioner(server.spec)([picture(1)])
    assert KEY not in str(error.value) and not server.asked


@pytest.mark.parametrize("spec", ["openai:gpt", "openai:@http://h/v1", "openai:a@ftp://h", "openai:a@http://u:p@h/v1"])
def test_malformed_endpoints_are_told(spec: str) -> None:
    with pytest.raises(DiffalignError, match="expected"):
        load_captioner(spec)


def test_examples() -> None:
    assert doctest.testmod(captioners).failed == 0
