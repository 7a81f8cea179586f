"""Many images through a reward: decoding on threads beside the network, and a status for every image."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffalign.core import DiffalignError, progress, warn
from diffalign.data import decode_image
from diffalign.rewards.contract import Reward, check_counts, whole_float32
from diffalign.rewards.loading import load_reward
from diffalign.rewards.pixels import as_rgb

__all__ = ["Scores", "clip_features", "judge_features", "score"]

ImageSource = Image.Image | str | Path

OK, NAN, BLACK, ERROR = "ok", "nan", "black image", "error"
_BLACK_LEVEL = 3  # of 255; a black image saved as a JPEG stays below
_AHEAD = 2  # batches prepared while one is scored
_THREADS = max(1, min(8, (os.cpu_count() or 1) - 1))  # one core is left to the network


@dataclass(frozen=True)
class Scores:
    """Scores of N images, none dropped.

    Attributes:
        identity: of the reward.
        values: (N,) float32 on the CPU; NaN where there is no score.
        statuses: per image "ok", "nan", "black image" or "error: ...".
        num_truncated: prompts longer than the text encoder reads.
    """

    identity: str
    values: Tensor
    statuses: list[str]
    num_truncated: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many images have each status; errors are counted together."""
        return dict(Counter(ERROR if status.startswith(ERROR) else status for status in self.statuses))


def score(reward: Reward, images: Sequence[ImageSource], prompts: Sequence[str], *, batch_size: int = 32) -> Scores:
    """Score images; what cannot be scored is reported and is NaN, never 0.

    A batch on which the reward fails is tried again image by image, so that one image does not take the others along.
    A black image (a safety filter's, say) is not shown to the reward.

    Args:
        reward: a loaded reward.
        images: N images or paths of image files, which are decoded by `diffalign.data.decode_image`.
        prompts: N texts.
        batch_size: images per call of the network.

    Raises:
        ValueError: the numbers differ, or ``batch_size`` is below 1.

    Example:
        >>> white, black = (Image.new("RGB", (5, 6), colour) for colour in ("white", "black"))
        >>> score(load_reward("saturation"), [white, black], ["snow", "night"]).statuses
        ['ok', 'black image']
    """
    check_counts(images, prompts)
    outcomes = progress(
        _outcomes(reward, images, prompts, batch_size),
        total=len(images),
        description=f"score {reward.card.name}",
        unit="images",
    )
    values, statuses = [], []
    for value, status in outcomes:
        values.append(value)
        statuses.append(status)
    scores = Scores(
        reward.card.identity, torch.tensor(values, dtype=torch.float32), statuses, reward.num_truncated(prompts)
    )
    missing = {status: count for status, count in scores.counts.items() if status != OK}
    if missing:
        listed = ", ".join(f"{count} {status}" for status, count in missing.items())
        first = next((f"; the first {status}" for status in statuses if status.startswith(ERROR)), "")
        warn(f"{reward.card.name}: {sum(missing.values())} of {len(statuses)} images have no score ({listed}){first}")
    return scores


def judge_features(
    images: Sequence[ImageSource], *, batch_size: int = 32, device: str | torch.device = "cpu"
) -> Tensor:
    """Features of the held-out tiny-judge, for distances between sets of images.

    Args:
        images: N images or paths.
        batch_size: images per call of the network.
        device: where to run.

    Returns:
        (N, 128) float32 on the CPU.

    Raises:
        DiffalignError: an image cannot be decoded.
    """
    return _features(load_reward("tiny-judge-realism", device=device), images, batch_size)


def clip_features(
    images: Sequence[ImageSource],
    *,
    reward: str = "tiny-clip",
    weights: str | Path | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """CLIP's image embeddings of unit length, for distances between sets of images.

    Args:
        images: N images or paths.
        reward: name of the CLIP score whose CLIP and preprocessing to take.
        weights: as for `load_reward`.
        batch_size: images per call of the network.
        device: where to run.

    Returns:
        (N, d) float32 on the CPU.

    Raises:
        DiffalignError: an image cannot be decoded, or no such weights.
    """
    return _features(load_reward(reward, weights=weights, device=device), images, batch_size)


@torch.no_grad()
def _features(reward: Reward, images: Sequence[ImageSource], batch_size: int) -> Tensor:
    if not images:
        raise DiffalignError("expected at least one image to take features of, got none")
    parts = []
    for batch in _prepared(reward, images, batch_size):
        for image in batch:
            if image.error is not None:
                raise image.error
        with whole_float32():
            parts.append(reward.encode([image.input for image in batch]).float().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class _Prepared:
    input: Any = None  # what the reward's ``prepare`` returned
    black: bool = False
    error: Exception | None = None


def _outcomes(
    reward: Reward, images: Sequence[ImageSource], prompts: Sequence[str], batch_size: int
) -> Iterator[tuple[float, str]]:
    """(value, status) of each image, in order."""
    start = 0
    for batch in _prepared(reward, images, batch_size):
        found: dict[int, tuple[float, str]] = {}
        inputs: dict[int, Any] = {}
        for index, image in enumerate(batch, start):
            if image.error is not None:
                found[index] = _failed(image.error)
            elif image.black:
                found[index] = (math.nan, BLACK)
            else:
                inputs[index] = image.input
        found |= _score_batch(reward, inputs, prompts)
        yield from (found[index] for index in range(start, start + len(batch)))
        start += len(batch)


def _prepared(reward: Reward, images: Sequence[ImageSource], batch_size: int) -> Iterator[list[_Prepared]]:
    """Batches of images after decoding and ``prepare``, done on threads a few batches ahead of the consumer."""
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of at least 1, got {batch_size}")
    part = math.ceil(batch_size / _THREADS)  # images per task: a task for every image would cost as much as a small one
    pool = ThreadPoolExecutor(_THREADS)
    try:
        waiting: deque[list[Future[list[_Prepared]]]] = deque()
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            parts = [batch[first : first + part] for first in range(0, len(batch), part)]
            waiting.append([pool.submit(_prepare, reward, each) for each in parts])
            if len(waiting) > _AHEAD:
                yield _joined(waiting.popleft())
        while waiting:
            yield _joined(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(parts: Sequence[Future[list[_Prepared]]]) -> list[_Prepared]:
    return [image for part in parts for image in part.result()]


@torch.no_grad()
def _prepare(reward: Reward, sources: Sequence[ImageSource]) -> list[_Prepared]:
    prepared = []
    for source in sources:
        try:
            image = as_rgb(source) if isinstance(source, Image.Image) else decode_image(Path(source))
            black = max(high for _, high in image.getextrema()) <= _BLACK_LEVEL  # type: ignore[misc]  # a pair per channel
            prepared.append(_Prepared(reward.prepare(image), black))
        except Exception as error:  # a bad image, or whatever ``prepare`` raises
            prepared.append(_Prepared(error=error))
    return prepared


def _score_batch(reward: Reward, inputs: dict[int, Any], prompts: Sequence[str]) -> dict[int, tuple[float, str]]:
    """(value, status) by index; after an error, one image at a time."""
    if not inputs:
        return {}
    try:
        values = reward.score_prepared(list(inputs.values()), [prompts[index] for index in inputs]).tolist()
        return {index: _outcome(value) for index, value in zip(inputs, values, strict=True)}
    except Exception as error:  # whatever a reward raises becomes a status
        failed = _failed(error)
    # outside of the block, where the error holds the memory of the failed batch no longer
    if len(inputs) == 1:
        return dict.fromkeys(inputs, failed)
    return {
        index: outcome
        for one, prepared in inputs.items()
        for index, outcome in _score_batch(reward, {one: prepared}, prompts).items()
    }


def _outcome(value: float) -> tuple[float, str]:
    if math.isnan(value):
        return math.nan, NAN
    return (value, OK) if math.isfinite(value) else (math.nan, f"{ERROR}: the score is {value}")


def _failed(error: BaseException) -> tuple[float, str]:
    return math.nan, f"{ERROR}: {type(error).__name__}: {' '.join(str(error).split())}"
