"""Captions that are empty, very long or repeated, and captions that do not fit their image."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TypeAlias

from PIL import Image

from diffalign.core import DiffalignError, numpy_generator
from diffalign.curate.audit.result import CaptionFit, Captions

__all__ = ["MAX_WORDS", "Fit", "FitTest", "describe_captions"]

Fit: TypeAlias = Callable[[Sequence[Image.Image], Sequence[str]], Sequence[float]]
"""How well each image fits its caption, higher is better: a CLIP score, say."""

MAX_WORDS = 60  # English text of 77 tokens
_SHOWN = 5
_OTHERS = 5  # odd: a caption beats more or less than half of them
_BATCH = 8  # pairs


class FitTest:
    """Compares each caption with 5 captions of other pairs on the same image, some pairs at a time.

    A caption is a misfit when it beats less than half of the others. A caption that has nothing to do with its image is
    caught half of the time, one that fits is rarely accused; the share that is beaten tells of all captions together.

    Args:
        fit: the score.
        prompts: of all pairs to come; the other captions are drawn from them.
        seed: of the draws; those of a pair depend on its own id.
    """

    def __init__(self, fit: Fit, prompts: Sequence[str], seed: int) -> None:
        self._fit, self._seed = fit, seed
        self._distinct = list(dict.fromkeys(prompts))
        self._place = {prompt: place for place, prompt in enumerate(self._distinct)}
        self._waiting: list[tuple[str, Image.Image, list[str]]] = []
        self._beaten: dict[str, float] = {}
        self._margins: dict[str, float] = {}

    def add(self, pair_id: str, image: Image.Image, prompt: str) -> None:
        """One pair's chosen image."""
        count, own = len(self._distinct) - 1, self._place[prompt]
        if not count:
            return
        draw = numpy_generator("other captions", self._seed, pair_id)
        places = draw.choice(count, size=_OTHERS, replace=count < _OTHERS)
        others = [self._distinct[place + (place >= own)] for place in places]  # the own one is passed over
        self._waiting.append((pair_id, image, [prompt, *others]))
        if len(self._waiting) == _BATCH:
            self._score()

    def result(self) -> CaptionFit | None:
        """What came out; None where no pair could be compared."""
        self._score()
        if not self._beaten:
            return None
        misfits = sorted(
            (one for one, share in self._beaten.items() if share < 0.5), key=lambda one: self._margins[one]
        )
        return CaptionFit(
            num_scored=len(self._beaten),
            share_beaten=sum(self._beaten.values()) / len(self._beaten),
            num_misfits=len(misfits),
            misfits=tuple(misfits[: 2 * _SHOWN]),
        )

    def _score(self) -> None:
        images = [image for _, image, captions in self._waiting for _ in captions]
        texts = [text for _, _, captions in self._waiting for text in captions]
        scores = [float(one) for one in self._fit(images, texts)] if images else []
        if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
            raise DiffalignError(
                f"expected {len(texts)} finite scores of how captions fit, got {len(scores)}, of which "
                f"{sum(map(math.isfinite, scores))} are finite; mend the score or leave it out"
            )
        for place, (pair_id, _, captions) in enumerate(self._waiting):
            own, *others = scores[place * len(captions) : (place + 1) * len(captions)]
            self._beaten[pair_id] = sum((own > other) + 0.5 * (own == other) for other in others) / len(others)
            self._margins[pair_id] = own - sum(others) / len(others)
        self._waiting = []


def describe_captions(prompts: Sequence[str], chosen: Sequence[str], fit: CaptionFit | None) -> Captions:
    """Count captions that are empty, very long or repeated.

    Args:
        prompts: (N,) texts.
        chosen: (N,) hash of the chosen image: several damages of one photograph rightly share its caption.
        fit: handed on.
    """
    images: dict[str, set[str]] = defaultdict(set)
    for prompt, image in zip(prompts, chosen, strict=True):
        images[prompt].add(image)
    repeated = Counter(prompt for prompt in prompts if len(images[prompt]) > 1)
    return Captions(
        num_empty=sum(not prompt.strip() for prompt in prompts),
        num_long=sum(len(prompt.split()) > MAX_WORDS for prompt in prompts),
        num_repeated=repeated.total(),
        most_repeated=tuple(repeated.most_common(_SHOWN)),
        fit=fit,
    )
