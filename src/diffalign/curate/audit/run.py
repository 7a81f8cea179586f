"""The audit of preference pairs: one pass that keeps a few numbers of each pair, then the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffalign.core import DiffalignError, numpy_generator, progress
from diffalign.curate.audit.captions import Fit, FitTest, describe_captions
from diffalign.curate.audit.causes import Enacted, enact, likeness, name_cause
from diffalign.curate.audit.duplicates import find_duplicates
from diffalign.curate.audit.leaks import MIN_PHOTOGRAPHS, is_leak, tell_sides
from diffalign.curate.audit.measure import Measured, measure_pair, sides_of
from diffalign.curate.audit.result import Audit, Histogram, LeakTest, Outside, Parity, Severity
from diffalign.curate.audit.rewards import compare_rewards
from diffalign.curate.audit.show import find_warnings
from diffalign.curate.audit.traces import TRACES, outside_of
from diffalign.data import Preferences
from diffalign.stats import paired_difference
from diffalign.types import Pair

__all__ = ["audit_pairs"]

_ENACTED = 12  # pairs on which causes are enacted
_EXAMPLES = 10
_PARITY = {"blocking": "grid_edges", "rolloff": "rolloff", "noise": "noise_level"}


def audit_pairs(
    pairs: Sequence[Pair] | Preferences, *, limit: int = 2000, seed: int = 0, fit: Fit | None = None
) -> Audit:
    """Look for what a model could learn from preference pairs instead of quality.

    Inpainting and codecs leave traces outside the mask. The audit measures the difference there, compares what both
    sides went through, and trains a classifier that sees nothing of the damage; where it tells chosen from rejected,
    likely causes are enacted on some of the images to name the one. Without masks the whole image is damage: there is
    no leak test, and parity counts the damage too. Duplicates, captions and rewards are looked at as well.

    Each pair is read once (its prompt once more where ``fit`` is given and ``pairs`` is no `Preferences`); what is kept
    of it are some hundred numbers.

    Args:
        pairs: `Preferences` or any sequence.
        limit: pairs looked at; of more, one is drawn from each of so many equal stretches.
        seed: of the draws.
        fit: (images, prompts) -> how well each caption fits, as a CLIP score; None leaves that out.

    Raises:
        DiffalignError: no pairs, rows that are no pairs, or a score of ``fit`` that is not finite.
        ValueError: limit below 1.

    Source:
        Chosen and rejected must go the same way: Torralba and Efros 2011, CVPR, on telling data sets apart; the
        paired test is our own.

    Example:
        >>> from PIL import Image
        >>> grey, white = (Image.new("RGB", (32, 24), colour) for colour in ("grey", "white"))
        >>> mask = Image.new("L", (32, 24))
        >>> found = audit_pairs([Pair(id="1", prompt="a wall", chosen=white, rejected=grey, mask=mask)])
        >>> found.outside.num_differing, found.outside.largest, found.no_leak
        (1, 127.0, '1 photograph to test, expected at least 20')
    """
    if limit < 1:
        raise ValueError(f"expected a limit of at least 1 pair, got {limit}")
    if not len(pairs):
        raise DiffalignError("expected pairs to audit, got none")
    chosen = _spread(len(pairs), limit, seed)
    test = FitTest(fit, _prompts(pairs, chosen), seed) if fit else None
    measured: list[Measured] = []
    enacted: list[Enacted] = []
    for index in progress(chosen, description="audit", unit="pairs"):
        pair = pairs[index]
        if not isinstance(pair, Pair):
            raise DiffalignError(f"expected pairs to audit, got a {type(pair).__name__} at row {index}")
        one = measure_pair(pair)
        measured.append(one)
        if test:
            test.add(pair.id, sides_of(pair)[0], pair.prompt)
        if one.largest and one.label > 0.5 and len(enacted) < _ENACTED and pair.mask is not None:
            ours, theirs = (side.convert("RGB") for side in sides_of(pair))
            enacted.append(enact(ours, theirs, outside_of(pair.mask), seed))
    return _audit(measured, enacted, test, num_pairs=len(pairs), seed=seed)


def _spread(count: int, limit: int, seed: int) -> list[int]:
    """At most ``limit`` of ``count`` numbers, in order: one from each of so many equal stretches."""
    if count <= limit:
        return list(range(count))
    edges = np.linspace(0, count, limit + 1).astype(int)
    drawn = numpy_generator("rows of the audit", seed, count).integers(edges[:-1], edges[1:])
    return [int(one) for one in drawn]


def _prompts(pairs: Sequence[Pair] | Preferences, indices: Sequence[int]) -> list[str]:
    if isinstance(pairs, Preferences):
        prompts = pairs.prompts()
        return [prompts[index] for index in indices]
    return [pairs[index].prompt for index in indices]


def _audit(
    measured: Sequence[Measured], enacted: Sequence[Enacted], test: FitTest | None, *, num_pairs: int, seed: int
) -> Audit:
    ranked = [one for one in measured if one.label > 0.5]
    leak, no_leak = _pixel_leak(ranked, enacted, seed)
    rewards, between = compare_rewards([one.scores for one in ranked])
    chosen = [one.sha256[0] for one in measured]
    found = Audit(
        num_pairs=num_pairs,
        num_audited=len(measured),
        num_ties=len(measured) - len(ranked),
        num_swapped=sum(one.swapped for one in measured),
        outside=_outside(measured),
        parity=_parity(ranked),
        leak=leak,
        no_leak=no_leak,
        file_leak=_file_leak(ranked, seed),
        rewards=rewards,
        between=between,
        severity=_severity(measured),
        duplicates=find_duplicates(
            [one.id for one in measured], [one.sha256 for one in measured], [one.structure for one in measured]
        ),
        captions=describe_captions([one.prompt for one in measured], chosen, test.result() if test else None),
    )
    return replace(found, warnings=tuple(find_warnings(found)))


def _outside(measured: Sequence[Measured]) -> Outside:
    compared = [one for one in measured if one.largest is not None]
    differing = [one for one in compared if one.largest]
    masked = [one for one in measured if one.area is not None]
    return Outside(
        num_pairs=len(compared),
        num_differing=len(differing),
        largest=max((one.largest or 0.0 for one in compared), default=0.0),
        mean=sum(one.mean for one in compared) / max(len(compared), 1),
        examples=tuple(one.id for one in differing[:_EXAMPLES]),
        num_without_mask=sum(one.same_size and one.area is None for one in measured),
        num_all_masked=sum(one.area == 1 for one in masked),
        num_empty_masks=sum(one.area == 0 for one in masked),
        num_sizes_differ=sum(not one.same_size for one in measured),
    )


def _with_traces(measured: Sequence[Measured], *, masked: bool) -> list[Measured]:
    return [one for one in measured if one.traces is not None and (one.area is not None) == masked]


def _traces(measured: Sequence[Measured], side: int) -> np.ndarray:
    return np.array([one.traces[side] for one in measured if one.traces is not None])


def _parity(ranked: Sequence[Measured]) -> Parity:
    masked = _with_traces(ranked, masked=True)
    compared = masked or _with_traces(ranked, masked=False)
    differences = {}
    if len(compared) >= 2:
        ours, theirs = (_traces(compared, side) for side in (0, 1))
        for name, trace in _PARITY.items():
            column = list(TRACES).index(trace)
            differences[name] = paired_difference(ours[:, [column]], theirs[:, [column]])
    known = [one.files for one in ranked if all("bytes_per_pixel" in side for side in one.files)]
    if len(known) >= 2:
        ours, theirs = (np.array([[files[side]["bytes_per_pixel"]] for files in known]) for side in (0, 1))
        differences["bytes_per_pixel"] = paired_difference(ours, theirs)
    return Parity(
        area="outside" if masked else "whole",
        num_pairs=len(compared),
        differences=differences,
        num_sizes_differ=sum(_of(one, "width", "height", 0) != _of(one, "width", "height", 1) for one in ranked),
        num_modes_differ=sum(_of(one, "mode", "mode", 0) != _of(one, "mode", "mode", 1) for one in ranked),
    )


def _of(one: Measured, first: str, second: str, side: int) -> tuple[object, object]:
    return one.files[side][first], one.files[side][second]


def _pixel_leak(ranked: Sequence[Measured], enacted: Sequence[Enacted], seed: int) -> tuple[LeakTest | None, str]:
    tested = _with_traces(ranked, masked=True)
    photographs = [one.sha256[0] for one in tested]
    distinct = len(set(photographs))
    if not tested:
        return None, "no pair has a mask that leaves something outside: the whole image is damage"
    if distinct < MIN_PHOTOGRAPHS:
        return None, f"{distinct} photograph{'s'[: distinct > 1]} to test, expected at least {MIN_PHOTOGRAPHS}"
    told = tell_sides(_traces(tested, 0), _traces(tested, 1), photographs, list(TRACES.values()), seed=seed)
    likenesses = likeness(enacted)
    cause = name_cause(likenesses, told.by_group) if is_leak(told.auc) or is_leak(told.single_auc) else ""
    return LeakTest(**vars(told), likeness=likenesses, cause=cause), ""


def _file_leak(ranked: Sequence[Measured], seed: int) -> LeakTest | None:
    from sklearn.feature_extraction import DictVectorizer

    photographs = [one.sha256[0] for one in ranked]
    if len(set(photographs)) < MIN_PHOTOGRAPHS:
        return None
    # a file's bytes are no feature: damage itself makes an image easier or harder to compress
    rows = [[{k: v for k, v in one.files[side].items() if k != "bytes_per_pixel"} for one in ranked] for side in (0, 1)]
    encoder = DictVectorizer(sparse=False).fit(rows[0] + rows[1])
    groups = [str(name).split("=")[0] for name in encoder.get_feature_names_out()]
    told = tell_sides(encoder.transform(rows[0]), encoder.transform(rows[1]), photographs, groups, seed=seed)
    most = max(told.by_group, key=lambda one: told.by_group[one])
    leaks = is_leak(told.auc) or is_leak(told.single_auc)
    return LeakTest(**vars(told), likeness={}, cause=f"files: the {most} tells" if leaks else "")


def _severity(measured: Sequence[Measured]) -> Severity:
    areas = [one.area for one in measured if one.area is not None]
    return Severity(
        area=_histogram(areas, 1.0, 20),
        damage=_histogram([one.damage for one in measured if one.damage is not None], 256.0, 32),
    )


def _histogram(values: Sequence[float], high: float, bins: int) -> Histogram:
    return Histogram(0.0, high, tuple(np.histogram(values, bins, (0.0, high))[0].tolist()))
