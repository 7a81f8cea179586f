"""Some photographs through the stages that look at each alone: read, locate, inpaint, score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from diffalign.core import seed_from
from diffalign.curate.config import CurateConfig
from diffalign.curate.degrade import composite, inpaint
from diffalign.curate.funnel import Dropped
from diffalign.curate.locate import colour_saliency, mask_of
from diffalign.curate.sources import Photo, Rejected
from diffalign.data import image_sha256
from diffalign.models import Family
from diffalign.rewards import Reward, score
from diffalign.sample import fitting_solvers
from diffalign.types import Pair, Provenance

__all__ = ["Row", "drop_repeated", "make_pairs"]

Row = dict[str, Any]
"""What became of a photograph: name, id, cleaned; then stage, reason, detail if it was dropped, else scores."""

Images = dict[int, Image.Image]  # by the photograph's number


def make_pairs(
    photos: Iterable[Photo | Rejected], family: Family, reward: Reward, config: CurateConfig
) -> tuple[list[Row], list[Pair]]:
    """The pairs of some photographs, before any is chosen for its scores.

    Args:
        photos: in order; those that could not be read become rows as well.
        family: the model that inpaints.
        reward: what scores both images.
        config: areas, steps, guidance, batch size and seed are taken from it.

    Returns:
        A row for each photograph, and the pairs of those that were not dropped, in their order.
    """
    rows, found = _read(photos)
    masks = _locate(found, rows, (config.min_area, config.max_area))
    damaged = _inpaint(found, masks, rows, family, config)
    scores = _score(found, damaged, rows, reward)
    pairs = []
    for index, two in scores.items():
        photo, mask, rejected = found[index], masks[index], damaged[index]
        rows[index]["scores"] = list(two)
        pairs.append(
            Pair(
                id=photo.id,
                prompt=photo.prompt,
                chosen=photo.image,
                rejected=rejected,
                mask=mask,
                scores={reward.card.identity: two},
                provenance=_provenance(photo, mask, rejected, family, config),
            )
        )
    return rows, pairs


def drop_repeated(rows: Iterable[Row]) -> None:
    """Mark as dropped each row whose image an earlier one shows."""
    first: dict[str, str] = {}
    for row in rows:
        if row["id"] in first:
            row |= asdict(Dropped("read", "repeated", f"the same image as {first[row['id']]}"))
        elif row["id"]:
            first[row["id"]] = row["name"]


def _read(photos: Iterable[Photo | Rejected]) -> tuple[list[Row], dict[int, Photo]]:
    rows: list[Row] = []
    found: dict[int, Photo] = {}
    for index, one in enumerate(photos):
        if isinstance(one, Rejected):
            rows.append({"name": one.name, "id": ""} | asdict(Dropped("read", one.reason, one.detail)))
        else:
            rows.append({"name": one.source, "id": one.id, "cleaned": bool(one.raw_caption)})
            found[index] = one
    drop_repeated(rows)
    return rows, {index: photo for index, photo in found.items() if "stage" not in rows[index]}


def _locate(found: Mapping[int, Photo], rows: Sequence[Row], area: tuple[float, float]) -> Images:
    masks = {}
    for index, photo in found.items():
        saliency = colour_saliency(photo.image)
        if saliency.any():
            masks[index] = mask_of(saliency, area=area)
        else:
            rows[index] |= asdict(Dropped("locate", "flat", "nothing stands out in it"))
    return masks


def _inpaint(
    found: Mapping[int, Photo], masks: Images, rows: Sequence[Row], family: Family, config: CurateConfig
) -> Images:
    """The photographs with what the masks cover drawn anew."""
    drawn = inpaint(
        family,
        [found[index].image for index in masks],
        list(masks.values()),
        [found[index].prompt for index in masks],
        seeds=[_seed(found[index], config) for index in masks],
        num_steps=config.num_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    damaged = {}
    for (index, mask), one in zip(masks.items(), drawn, strict=True):
        if one is None:
            rows[index] |= asdict(Dropped("inpaint", "not finite", "the model's numbers are not finite"))
        else:
            damaged[index] = composite(found[index].image, one, mask)
    return damaged


def _score(
    found: Mapping[int, Photo], damaged: Images, rows: Sequence[Row], reward: Reward
) -> dict[int, tuple[float, float]]:
    """Scores of the photograph and of the damaged one, where both have one."""
    prompts = [found[index].prompt for index in damaged]
    scored = score(reward, [*(found[index].image for index in damaged), *damaged.values()], prompts + prompts)
    values, statuses, count = scored.values.tolist(), scored.statuses, len(damaged)
    both = {}
    for place, index in enumerate(damaged):
        two, status = (values[place], values[count + place]), (statuses[place], statuses[count + place])
        if any(map(math.isnan, two)):
            detail = f"the photograph: {status[0]}; damaged: {status[1]}"
            rows[index] |= asdict(Dropped("score", "no score", detail))
        else:
            both[index] = two
    return both


def _provenance(
    photo: Photo, mask: Image.Image, rejected: Image.Image, family: Family, config: CurateConfig
) -> Provenance:
    parameters: dict[str, Any] = {
        "saliency": "colour",
        "area": float((np.asarray(mask) > 0).mean()),
        "solver": fitting_solvers(family)[0],
        "num_steps": config.num_steps,
        "guidance_scale": config.guidance_scale,
    }
    if photo.raw_caption:
        parameters["raw_caption"] = photo.raw_caption
    return Provenance(
        source=photo.source,
        license=photo.license,
        sha256=(image_sha256(photo.image), image_sha256(rejected)),
        method="inpaint",
        parameters=parameters,
        seed=_seed(photo, config),
        model_revision=family.revision,
    )


def _seed(photo: Photo, config: CurateConfig) -> int:
    return seed_from("inpaint", config.seed, photo.id)
