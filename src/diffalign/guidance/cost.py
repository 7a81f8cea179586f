"""What a guide costs, counted before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffalign.guidance.contract import Guide, Pass

__all__ = ["count_evaluations"]


def count_evaluations(
    guide: Guide, progresses: Sequence[float], *, text_guided: bool, refresh_every: int | None = None
) -> int:
    """How often the denoiser sees one image in a run: each pass at each step counts once per text branch it is for.

    Args:
        guide: the guide.
        progresses: of the denoiser's calls in order, from 0, pure noise, to 1, the image.
        text_guided: whether every call has an unconditional branch.
        refresh_every: as ``attach`` takes it. What ``refresh_above`` saves cannot be known beforehand.

    Example:
        >>> from diffalign.guidance import Contrastive
        >>> guide = Contrastive(positive="runs/pos", negative="runs/neg", scale=4.0, stop=0.5)
        >>> count_evaluations(guide, [0.0, 0.25, 0.5, 0.75], text_guided=True)
        16
    """
    total, held_since = 0, None
    for number, progress in enumerate(progresses):
        passes = guide.passes(progress if guide.timed else 0.0)
        if any(name in guide.held for name in passes):
            if held_since is not None and number - held_since < (refresh_every or 1):
                passes = {name: each for name, each in passes.items() if name not in guide.held}
            else:
                held_since = number
        total += _evaluations(passes, text_guided)
    return total


def _evaluations(passes: Mapping[str, Pass], text_guided: bool) -> int:
    return sum(2 if each.branch == "both" and text_guided else 1 for each in passes.values())
