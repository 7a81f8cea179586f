"""The stages of curation that look at each photograph alone: rows to rows, each of use by itself.

    read_photos, select_photos, drop_artwork, caption_photos,
    locate_regions, degrade_regions, composite_regions, score_pairs

A row that a stage drops stays in the list with its reason; later stages pass it over.

Example: two photographs damaged by JPEG inside their salient part.

    >>> from diffalign.curate import embedded_photographs, load_degradation, load_locator
    >>> rows = read_photos(embedded_photographs("train", 2, 32))
    >>> rows = locate_regions(rows, load_locator("colour_saliency"))
    >>> rows = composite_regions(degrade_regions(rows, load_degradation({"name": "jpeg", "severity": 0.9})))
    >>> [row.pair().provenance.method for row in rows]
    ['jpeg', 'jpeg']
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from diffalign.core import seed_from
from diffalign.curate.captioners import Captioner
from diffalign.curate.degrade import Degradation, composite
from diffalign.curate.locate import Locator
from diffalign.curate.perceptual import perceptual_hash
from diffalign.curate.rows import Candidate, only_left
from diffalign.curate.sources import Photo, Rejected
from diffalign.rewards import Reward, score

__all__ = [
    "ARTWORK",
    "PHOTOGRAPH",
    "caption_photos",
    "composite_regions",
    "degrade_regions",
    "drop_artwork",
    "locate_regions",
    "read_photos",
    "score_pairs",
    "select_photos",
]

PHOTOGRAPH = "a photograph"
ARTWORK = ("a painting", "a drawing", "anime", "a 3D render", "a screenshot of text")
"""What `drop_artwork` lets a photograph compete with."""


def read_photos(photos: Iterable[Photo | Rejected]) -> list[Candidate]:
    """A row for each photograph; those that could not be read are dropped."""
    return [Candidate.of(one) for one in photos]


def select_photos(
    rows: Sequence[Candidate],
    *,
    rewards: Mapping[str, Reward] | None = None,
    min_scores: Mapping[str, float] | None = None,
    min_contrast: float = 0.0,
) -> list[Candidate]:
    """Measure photographs; drop those that are blank, have no score or score too low.

    Args:
        rows: any.
        rewards: what else to measure, by the name it gets in ``statistics``.
        min_scores: least score by that name.
        min_contrast: least standard deviation of the grey values, in [0, 1].

    Raises:
        ValueError: a least score of what is not measured.
    """
    rewards, least = rewards or {}, min_scores or {}
    if unmeasured := set(least) - set(rewards):
        raise ValueError(f"expected min_scores of what is measured, {sorted(rewards)}, got {sorted(unmeasured)} too")

    def measure(left: list[Candidate]) -> list[Candidate]:
        measured = []
        for row in left:
            contrast = float(np.asarray(row.image.convert("L"), dtype=np.float64).std() / 255)
            known = replace(row, statistics={"contrast": contrast}, fingerprint=perceptual_hash(row.image))
            blank = f"grey values differ by {contrast:.3g}, expected at least {min_contrast:g}"
            measured.append(known if contrast >= min_contrast else known.drop("select", "blank", blank))
        return measured

    rows = only_left(rows, measure)
    for name, reward in rewards.items():
        rows = only_left(rows, partial(_threshold, name=name, reward=reward, least=least.get(name, -math.inf)))
    return rows


def _threshold(left: list[Candidate], name: str, reward: Reward, least: float) -> list[Candidate]:
    found = score(reward, [row.image for row in left], [_prompt(row) for row in left])
    rows = []
    for row, value, status in zip(left, found.values.tolist(), found.statuses, strict=True):
        if math.isnan(value):
            rows.append(row.drop("select", f"no {name}", status))
            continue
        known = replace(row, statistics=dict(row.statistics) | {name: value})
        low = f"{value:.4g}, expected at least {least:g}"
        rows.append(known if value >= least else known.drop("select", f"low {name}", low))
    return rows


def drop_artwork(rows: Sequence[Candidate], judge: Reward | Captioner) -> list[Candidate]:
    """Drop what is no photograph.

    Args:
        rows: any.
        judge: a text-image reward, for which "a photograph" must fit better than any of `ARTWORK`; or a captioner that
            is asked whether the image is artwork and answers yes or no.
    """

    def judged(left: list[Candidate]) -> list[Candidate]:
        images = [row.image for row in left]
        if isinstance(judge, Reward):
            likenesses = _likenesses(judge, images)
            return [
                row.drop("select", f"no {judge.card.name}", "it has no score for this image")
                if not like
                else row
                if like == PHOTOGRAPH
                else row.drop("select", "not a photograph", f"rather {like}")
                for row, like in zip(left, likenesses, strict=True)
            ]
        answers = judge(images)
        return [
            row if answer.strip().lower().startswith("no") else row.drop("select", "not a photograph", answer[:80])
            for row, answer in zip(left, answers, strict=True)
        ]

    return only_left(rows, lambda left: judged(left) if left else left)


def _likenesses(judge: Reward, images: Sequence[Image.Image]) -> list[str]:
    """Which of the texts fits each image best, the first of equals; empty where one has no score."""
    texts = (PHOTOGRAPH, *ARTWORK)
    scores = np.stack([score(judge, images, [text] * len(images)).values.numpy() for text in texts])
    missing = np.isnan(scores).any(0)
    return ["" if none else texts[best] for none, best in zip(missing, scores.argmax(0), strict=True)]


def caption_photos(rows: Sequence[Candidate], captioner: Captioner) -> list[Candidate]:
    """Give the photographs that lack a caption one; drop those for which there is none."""

    def caption(left: list[Candidate]) -> list[Candidate]:
        bare = [row for row in left if not _prompt(row)]
        texts = iter(captioner([row.image for row in bare]) if bare else [])
        told = []
        for row in left:
            if row.photo is None or row.photo.prompt:
                told.append(row)
            elif text := next(texts):
                told.append(replace(row, photo=replace(row.photo, prompt=text)))
            else:
                told.append(row.drop("read", "no caption", "the captioner has none either"))
        return told

    return only_left(rows, caption)


def locate_regions(rows: Sequence[Candidate], locator: Locator, *, seed: int = 0) -> list[Candidate]:
    """Mask where each photograph will be damaged; drop those in which there is no such place."""

    def masked(left: list[Candidate]) -> list[Candidate]:
        seeds = [seed_from("locate", seed, row.photo.id) for row in left if row.photo]
        masks = locator([row.image for row in left], [_prompt(row) for row in left], seeds)
        told = {"locate": {"name": locator.name, **locator.parameters, "model_revision": locator.model_revision}}
        return [
            row.drop("locate", "nothing stands out", f"{locator.name} found no place to damage")
            if mask is None
            else replace(row, mask=mask, parameters=dict(row.parameters) | told)
            for row, mask in zip(left, masks, strict=True)
        ]

    return only_left(rows, masked)


def degrade_regions(rows: Sequence[Candidate], degradation: Degradation, *, seed: int = 0) -> list[Candidate]:
    """Damage each photograph where its mask says, or as a whole where it has none.

    The seed of a row is made of ``seed``, the degradation's name and the photograph's id.
    """

    def damaged(left: list[Candidate]) -> list[Candidate]:
        seeds = [seed_from(degradation.name, seed, row.photo.id) for row in left if row.photo]
        images = degradation(
            [row.image for row in left], [row.mask for row in left], [_prompt(row) for row in left], seeds
        )
        made = []
        for row, image, own in zip(left, images, seeds, strict=True):
            if image is None:
                made.append(row.drop("degrade", "not finite", "the model's numbers are not finite"))
                continue
            used = degradation.method_for(own)
            made.append(
                replace(
                    row,
                    rejected=image,
                    method=used.name,
                    parameters=dict(row.parameters) | used.parameters,
                    seed=own,
                    model_revision=used.model_revision,
                )
            )
        return made

    return only_left(rows, lambda left: damaged(left) if left else left)


def composite_regions(rows: Sequence[Candidate], *, feather: float = 0) -> list[Candidate]:
    """Put the photograph back outside each mask, so that only the damage differs; drop what then does not differ.

    Args:
        rows: any; those without a mask are damaged as a whole.
        feather: width of a smooth edge inside the mask, pixels.
    """

    def whole(row: Candidate) -> Candidate:
        if row.rejected is None:
            return row
        image = row.rejected if row.mask is None else composite(row.image, row.rejected, row.mask, feather)
        if image.tobytes() == row.image.tobytes():
            return row.drop("degrade", "no damage", f"{row.method} changed nothing")
        feathered = {"feather": feather} if feather and row.mask is not None else {}
        return replace(row, rejected=image, parameters=dict(row.parameters) | feathered)

    return only_left(rows, lambda left: [whole(row) for row in left])


def score_pairs(rows: Sequence[Candidate], rewards: Sequence[Reward]) -> list[Candidate]:
    """Score photograph and damaged copy; drop the pairs of which one has no score."""
    for reward in rewards:
        rows = only_left(rows, partial(_score, reward=reward))
    return list(rows)


def _score(left: list[Candidate], reward: Reward) -> list[Candidate]:
    prompts = [_prompt(row) for row in left]
    images = [row.image for row in left] + [row.rejected for row in left if row.rejected is not None]
    found = score(reward, images, prompts + prompts)
    values, statuses, count = found.values.tolist(), found.statuses, len(left)
    scored = []
    for place, row in enumerate(left):
        two = values[place], values[count + place]
        if any(map(math.isnan, two)):
            detail = f"{reward.card.name}: the photograph: {statuses[place]}; damaged: {statuses[count + place]}"
            scored.append(row.drop("score", "no score", detail))
        else:
            scored.append(replace(row, scores=dict(row.scores) | {reward.card.identity: two}))
    return scored


def _prompt(row: Candidate) -> str:
    return row.photo.prompt if row.photo else ""
