"""A guide as settings of a sampling run: checked before any weight loads, attached while images are made, counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from diffalign.core import Config, DiffalignError, setting
from diffalign.guidance import NAG, Guide, attach, count_evaluations, guide_identity, make_guide
from diffalign.guidance.running import Refresh, clock
from diffalign.models import Family
from diffalign.sample.sampler import Solver, make_scheduler

__all__ = ["GuideConfig", "checked_guide", "evaluations_per_image", "guide_told", "guided"]


class GuideConfig(Config):
    """What sampling follows besides the model."""

    name: str = setting(..., "pgd, cpgd, plus_minus, weighted, npo, chats or nag; see docs/guidance.md")
    settings: dict[str, Any] = setting({}, "of the guide: its LoRAs, scale, stop, ...; see the reference of guidance")
    packed: bool | Literal["auto"] = setting("auto", "rows of all passes in one forward: true, false, or up to 24 rows")
    refresh_every: int | None = setting(
        None, "evaluations that one difference serves; none for one", unit="evaluations", ge=1
    )
    refresh_above: float | None = setting(None, "renew it once the prediction changed by more than this share", gt=0)


def checked_guide(config: GuideConfig, guidance_scale: float) -> Guide:
    """The guide, if it works in such a run; no file is read.

    Args:
        config: its settings.
        guidance_scale: of text guidance, 1 is off.

    Raises:
        DiffalignError: see ``make_guide``; a guide of the unconditional branch without text guidance, several negative
            prompts, or differences held where there are none.
    """
    guide = make_guide(config.name, config.settings)
    Refresh(every=config.refresh_every, above=config.refresh_above).check(guide)
    if guidance_scale == 1 and any(each.branch == "uncond" for each in guide.passes(0.0).values()):
        raise DiffalignError(
            f"guide {config.name!r} acts on the unconditional branch, and at guidance_scale 1 text guidance is off: "
            "give another --guidance"
        )
    if isinstance(guide, NAG) and not isinstance(guide.negative_prompt, str | None):
        raise DiffalignError("expected one negative_prompt, a text, for all images of a run, got several")
    return guide


def guide_told(config: GuideConfig) -> dict[str, Any]:
    """What identifies the guide, for manifests and comparisons: see ``guide_identity``; and when it is renewed.

    ``packed`` is no part of it: images are the same but for float noise.

    Raises:
        DiffalignError: see ``guide_identity``.
    """
    told = guide_identity(config.name, config.settings)
    renewed = {"refresh_every": config.refresh_every, "refresh_above": config.refresh_above}
    return told | {name: value for name, value in renewed.items() if value is not None}


@contextmanager
def guided(family: Family, config: GuideConfig | None, guidance_scale: float) -> Iterator[None]:
    """Inside the block the family's denoiser predicts as the guide says; adapters that are on stay on.

    Args:
        family: a loaded model.
        config: of the guide; None for none.
        guidance_scale: of the run's text guidance: unless it is 1, batches have the unconditional half first.

    Raises:
        DiffalignError: see ``checked_guide`` and ``attach``.
    """
    if config is None:
        yield
        return
    with attach(
        family.pipeline(),
        checked_guide(config, guidance_scale),
        packed=config.packed,
        refresh_every=config.refresh_every,
        refresh_above=config.refresh_above,
        text_rows="cond" if guidance_scale == 1 else "uncond_cond",
    ):
        yield


def evaluations_per_image(
    family: Family, config: GuideConfig | None, *, num_steps: int, solver: Solver | None, guidance_scale: float
) -> int:
    """How often the denoiser sees one image, with the guide's passes; see ``count_evaluations``.

    Args:
        family: a model or its outline.
        config: of the guide; None for none.
        num_steps: of the solver.
        solver: see ``make_scheduler``.
        guidance_scale: of text guidance; 1 is off.

    Raises:
        DiffalignError: see ``checked_guide``; or windows and schedules mean nothing for this denoiser.
    """
    text_guided = guidance_scale != 1
    if config is None:
        return num_steps * (2 if text_guided else 1)
    guide = checked_guide(config, guidance_scale)
    scheduler = make_scheduler(family, solver)
    scheduler.set_timesteps(num_steps)
    pure_noise = clock(family.denoiser, family.pipeline()) if guide.timed else 1.0
    progresses = [1 - float(timestep) / pure_noise for timestep in scheduler.timesteps]
    return count_evaluations(guide, progresses, text_guided=text_guided, refresh_every=config.refresh_every)
