"""Captions from models: images to one plain text each, by a model here or behind an endpoint of OpenAI's form."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from PIL import Image

from diffalign.core import DiffalignError, content_hash, sha256_file
from diffalign.curate.captions import clean_caption
from diffalign.data import encode_png
from diffalign.models import quiet_loading
from diffalign.rewards.contract import UNVERSIONED
from diffalign.rewards.weights import WEIGHTS, find_folder, weights_revision

__all__ = ["QUESTION", "Captioner", "EndpointCaptioner", "ModelCaptioner", "load_captioner"]

QUESTION = "Describe the image concisely."
"""What a model is asked: one of LLaVA's instructions for brief descriptions (Liu et al. 2023, arXiv 2304.08485)."""

KEY = "OPENAI_API_KEY"  # environment variable
_ENDPOINT = re.compile(r"openai:(?P<model>.+?)@(?P<url>https?://.+)")
_ALONE = ("blip", "blip-2", "git")  # architectures trained to caption an image without being asked
_FILES = (*WEIGHTS, "*.jinja", "*.model")
_DECISIVE = ("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json")
_RETRIES = 3
_MAX_WAIT = 60.0  # seconds that an endpoint may ask us to wait
_MAX_ANSWER = 2**20  # bytes


class Captioner(Protocol):
    """Images to captions: plain text on one line each, empty where there is none."""

    @property
    def identity(self) -> str:
        """What decides the captions; another one means other captions."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Captions of B images."""
        ...


def load_captioner(
    spec: str,
    *,
    device: str | torch.device = "cpu",
    question: str = QUESTION,
    max_new_tokens: int = 64,
    batch_size: int = 8,
) -> Captioner:
    """Load a captioner.

    Args:
        spec: folder or hub id of a transformers model from images and text to text; or ``openai:MODEL@URL``, a model
            behind an endpoint such as ``http://127.0.0.1:8000/v1``, with its key in the variable OPENAI_API_KEY.
        device: where a model here runs: in float32 on the CPU, else in the precision of its weights.
        question: what it is asked; BLIP, BLIP-2 and GIT caption unasked and take no other.
        max_new_tokens: length of a caption at most.
        batch_size: images at a time.

    Raises:
        DiffalignError: there is no such model, it is not of this kind, or the endpoint's URL is malformed.

    Example:
        >>> load_captioner("openai:qwen@http://127.0.0.1:8000/v1").identity
        'openai:qwen@unknown/49353deb1d47'
    """
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"expected max_new_tokens and batch_size of at least 1, got {max_new_tokens} and {batch_size}")
    if not spec.startswith("openai:"):
        return _load_model(spec, torch.device(device), question, max_new_tokens, batch_size)
    match = _ENDPOINT.fullmatch(spec)
    if match is None:
        raise DiffalignError(f"expected openai:MODEL@http://host/v1, got {spec!r}")
    url = urlsplit(match["url"])
    if url.username or url.password or url.query or url.fragment:
        raise DiffalignError(f"expected a plain URL such as https://host/v1; keys belong in the variable {KEY}")
    return EndpointCaptioner(
        model=match["model"],
        url=match["url"].rstrip("/"),
        question=question,
        max_new_tokens=max_new_tokens,
        num_parallel=batch_size,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ModelCaptioner:
    """A transformers model on this machine, decoded greedily; batch mates change an answer by float noise only.

    Attributes:
        identity: name, weights, and a hash of what is asked and how.
        model: of the class that `AutoModelForImageTextToText` finds.
        processor: its own.
        question: what is asked; empty for models that caption unasked.
        max_new_tokens: length of a caption at most.
        batch_size: images at a time.
    """

    identity: str
    model: Any
    processor: Any
    question: str
    max_new_tokens: int
    batch_size: int

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Captions of B images."""
        captions: list[str] = []
        for start in range(0, len(images), self.batch_size):
            inputs = self._inputs([image.convert("RGB") for image in images[start : start + self.batch_size]])
            tokens = self.model.generate(
                **inputs.to(self.model.device, self.model.dtype),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                max_new_tokens=self.max_new_tokens,
            )
            if "input_ids" in inputs and not self.model.config.is_encoder_decoder:
                tokens = tokens[:, inputs["input_ids"].shape[1] :]  # the question comes back before the answer
            captions += self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [clean_caption(caption) for caption in captions]

    def _inputs(self, images: list[Image.Image]) -> Any:
        if not self.question:
            return self.processor(images=images, return_tensors="pt")
        asked = [
            [{"role": "user", "content": [{"type": "image", "image": one}, {"type": "text", "text": self.question}]}]
            for one in images
        ]
        return self.processor.apply_chat_template(
            asked,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},  # answers go on from the right
        )


def _load_model(spec: str, device: torch.device, question: str, max_new_tokens: int, batch_size: int) -> ModelCaptioner:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = find_folder(spec, _FILES)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DiffalignError(f"cannot use the device {str(device)!r}: {str(error).splitlines()[0]}") from error
    try:
        with quiet_loading():
            processor = AutoProcessor.from_pretrained(folder)
            model, info = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=torch.float32 if device.type == "cpu" else "auto",
                use_safetensors=True,
                output_loading_info=True,
            )
    except ImportError as error:
        raise DiffalignError(f"{spec} needs a package that is not here: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DiffalignError(
            f"cannot load {spec} as a captioner: {error}\nExpected a model from images and text to text, with "
            "config.json, its processor's files and safetensors weights."
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:  # transformers would leave these at random
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise DiffalignError(f"{spec} is not a whole model: {len(lacking)} weights lack: {lacking[:3]}")
    asked = "" if model.config.model_type in _ALONE else question
    if not asked and question != QUESTION:
        raise DiffalignError(f"{spec} captions images but answers no questions; use an instruction-tuned model")
    if asked and not getattr(processor, "chat_template", None):
        raise DiffalignError(f"{spec} has no chat template, so it cannot be asked; use an instruction-tuned model")
    files = [(file.name, sha256_file(file)) for file in map(folder.joinpath, _DECISIVE) if file.is_file()]
    how = content_hash(asked, max_new_tokens, str(model.dtype), files)[:12]
    return ModelCaptioner(
        identity=f"{Path(spec).name}@{weights_revision(folder)}/{how}",
        model=model.to(device).eval().requires_grad_(False),
        processor=processor,
        question=asked,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class EndpointCaptioner:
    """A model behind an endpoint of OpenAI's form, asked at temperature 0; its version cannot be told.

    The key is read from the environment at each call, and is no part of this object.

    Attributes:
        model: its name there.
        url: up to and with ``/v1``.
        question: what is asked.
        max_new_tokens: length of a caption at most.
        num_parallel: requests at a time.
        timeout: of a request, seconds.
        backoff: wait before the first of three retries, seconds; doubled each time.
    """

    model: str
    url: str
    question: str = QUESTION
    max_new_tokens: int = 64
    num_parallel: int = 8
    timeout: float = 120.0
    backoff: float = 1.0

    @property
    def identity(self) -> str:
        """Name, and a hash of what is asked; not of where, since a server may move."""
        how = content_hash(self.question, self.max_new_tokens)[:12]
        return f"openai:{self.model}@{UNVERSIONED}/{how}"

    def __call__(self, images: Sequence[Image.Image]) -> list[str]:
        """Captions of B images."""
        if not images:
            return []
        with ThreadPoolExecutor(self.num_parallel) as pool:
            return [clean_caption(answer) for answer in pool.map(self._ask, images)]

    def _ask(self, image: Image.Image) -> str:
        picture = base64.b64encode(encode_png(image.convert("RGB"))).decode()
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
            {"type": "text", "text": self.question},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }
        return _answer(self._post(json.dumps(body).encode()), self.url)

    def _post(self, body: bytes) -> bytes:
        """The response; tried again where the server is busy, fails or cannot be reached."""
        opener = urllib.request.build_opener(_NoRedirects)
        key = _key()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(f"{self.url}/chat/completions", data=body, headers=headers)
        for attempt in range(_RETRIES + 1):
            wait = self.backoff * 2**attempt
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    data: bytes = response.read(_MAX_ANSWER + 1)
                    return data
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_said(error, key)}"
                if error.code != 429 and error.code < 500:
                    raise DiffalignError(f"{self.url} refused: {problem}; check the model's name and {KEY}") from None
                wait = _wait(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:  # no way there, too slow, cut off
                problem = str(error) or type(error).__name__
            if attempt < _RETRIES:
                time.sleep(wait)
        raise DiffalignError(f"{self.url} gave no answer in {_RETRIES + 1} tries; the last: {problem}")


def _key() -> str:
    """The key, if there is one; an error of the library would repeat a malformed one."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise DiffalignError(f"the variable {KEY} holds characters that no key has; copy the key again")
    return key


def _answer(data: bytes, url: str) -> str:
    """The text of a response; empty where the model said nothing."""
    try:
        content = json.loads(data[:_MAX_ANSWER])["choices"][0]["message"].get("content")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise DiffalignError(f"expected an answer of OpenAI's form from {url}, got {data[:100]!r}") from error
    if isinstance(content, list):  # in parts
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _said(error: urllib.error.HTTPError, key: str) -> str:
    """The beginning of an error's text, without the key, which some servers repeat."""
    try:
        text = error.read(2000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    shown = text.replace(key, "...") if key else text
    return " ".join(shown.split())[:200] or "no reason given"


def _wait(asked: str | None, planned: float) -> float:
    """Seconds: what the server asks for, within bounds, or what was planned."""
    return min(float(asked), _MAX_WAIT) if asked and asked.strip().isdigit() else planned
