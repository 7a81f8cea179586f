"""Candidate sets of several models as larger ones: the images of a prompt side by side, each with its origin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from diffalign.core import DiffalignError, progress, warn
from diffalign.data.preferences import Preferences
from diffalign.data.writing import MadeRow, write_preferences
from diffalign.types import CandidateSet, Provenance

__all__ = ["merge_candidates", "merge_sets"]


def merge_sets(sets: Sequence[CandidateSet]) -> CandidateSet:
    """Candidate sets of one prompt as one: the images of the first, then those of the second, and so on.

    Scores stay that all sets have. The provenance's parameters get "parts": for each set the numbers of its images in
    the new one, and its own provenance. What all sets say alike (source, licence, model revision) stands above too.

    Args:
        sets: of one id and prompt, with different images.

    Raises:
        DiffalignError: ids or prompts differ, an image comes twice, or there are scores and none that all sets have.

    Example:
        >>> from PIL import Image
        >>> one, two = (
        ...     CandidateSet(
        ...         id="7", prompt="snow", images=(Image.new("RGB", (5, 6), colour),), scores={"luminance": (score,)},
        ...         provenance=Provenance(method="sample", model_revision=colour),
        ...     )
        ...     for colour, score in (("grey", 0.5), ("white", 1.0))
        ... )
        >>> both = merge_sets([one, two])
        >>> both.scores, [(part["images"], part["model_revision"]) for part in both.provenance.parameters["parts"]]
        ({'luminance': (0.5, 1.0)}, [([0], 'grey'), ([1], 'white')])
    """
    name = sets[0].id
    if len({(one.id, one.prompt) for one in sets}) > 1:
        prompts = sorted({f"{one.id!r}: {one.prompt!r}" for one in sets})
        raise DiffalignError(f"expected candidate sets of one id and prompt to merge, got {', '.join(prompts)}")
    hashes = [sha256 for one in sets for sha256 in one.provenance.sha256]
    if len(set(hashes)) < len(hashes):
        raise DiffalignError(f"row {name!r}: an image comes twice; merge sets of different models, seeds or settings")
    common = [metric for metric in sets[0].scores if all(metric in one.scores for one in sets)]
    if not common and any(one.scores for one in sets):
        raise DiffalignError(f"row {name!r}: the sets have no score in common: score them all by the same rewards")
    parts, start = list[dict[str, Any]](), 0
    for one in sets:
        told = asdict(one.provenance)
        del told["sha256"]
        parts.append({"images": list(range(start, start + len(one.images))), **told})
        start += len(one.images)
    return CandidateSet(
        id=name,
        prompt=sets[0].prompt,
        images=tuple(image for one in sets for image in one.images),
        scores={metric: tuple(score for one in sets for score in one.scores[metric]) for metric in common},
        provenance=Provenance(
            source=_alike(part["source"] for part in parts),
            license=_alike(part["license"] for part in parts),
            sha256=tuple(hashes) if len(hashes) == start else (),
            method="merge",
            parameters={"parts": parts},
            model_revision=_alike(part["model_revision"] for part in parts),
        ),
    )


def merge_candidates(sources: Sequence[str | Path], folder: str | Path) -> int:
    """Write the candidate sets that all sources have under the same id, merged, into ``folder``; see ``merge_sets``.

    Images keep their encoded bytes. Ids that not all sources have are left out, and counted in a warning, so that every
    set has as many images. A folder that is there is left as it is.

    Args:
        sources: folders or files of candidate sets, such as two runs of ``diffalign generate-candidates``.
        folder: of the Parquet files; it appears whole at the end.

    Returns:
        The number of sets written.

    Raises:
        DiffalignError: a source holds pairs, the sources have no id in common, or two sets do not fit.
    """
    opened = [Preferences(source) for source in sources]
    if len(opened) < 2 or any(one.form != "candidates" for one in opened):
        raise DiffalignError("expected two or more sources of candidate sets to merge")
    places = [{name: index for index, name in enumerate(one.ids())} for one in opened]
    common = [name for name in places[0] if all(name in each for each in places)]
    left_out = len({name for each in places for name in each}) - len(common)
    if not common:
        raise DiffalignError(f"the candidate sets of {', '.join(map(str, sources))} have no id in common")
    if left_out:
        warn(f"{left_out} candidate sets are left out: not every source has one of their id")

    def rows() -> Iterator[tuple[str, Callable[[], MadeRow]]]:
        for name in progress(common, description="merge candidate sets", unit="sets"):
            yield name, partial(_make, [(one, each[name]) for one, each in zip(opened, places, strict=True)])

    write_preferences(folder, "candidates", rows())
    return len(common)


def _make(found: Sequence[tuple[Preferences, int]]) -> MadeRow:
    encoded = [stored["bytes"] for rows, index in found for stored in rows.record(index)["images"]]
    return merge_sets([rows[index] for rows, index in found]), encoded


def _alike(values: Iterator[str]) -> str:
    """What all say; empty where they differ."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""
