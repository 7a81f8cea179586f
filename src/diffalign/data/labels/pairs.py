"""Rows under a rule: candidate sets to pairs, pairs to pairs with another label."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffalign.core import dump_config
from diffalign.data.labels.rules import LabelledPair, PairChoice, Rules, as_rules, label_scores
from diffalign.data.schema import LABEL_METRIC, pair_as_candidates
from diffalign.types import CandidateSet, Pair, Provenance

__all__ = ["labelled_pair", "pair_id", "pairs_from_candidates", "relabel", "turned"]


def pairs_from_candidates(candidates: CandidateSet, rules: Rules, *, pairs: PairChoice = "best-worst") -> list[Pair]:
    """The pairs of a candidate set that the rules keep, the better image of each as chosen.

    A pair's id is that of the set and the numbers of its images, such as ``"7:3-0"``; it keeps both scores of every
    metric, and the set's provenance, whose parameters get "candidates" (the set's id and the images' numbers) and
    "label" (the rules). Those that are dropped are in ``label_scores``.

    Args:
        candidates: K >= 2 images with scores.
        rules: one, or several with their shares.
        pairs: "best-worst", "all" or "pareto", see ``label_scores``.

    Raises:
        DiffalignError: a metric is missing (with the nearest), ambiguous or not finite, naming the row.

    Example:
        >>> from PIL import Image
        >>> from diffalign.data import LabelRule
        >>> images = tuple(Image.new("RGB", (5, 6), colour) for colour in ("black", "grey", "white"))
        >>> row = CandidateSet(id="7", prompt="snow", images=images, scores={"luminance": (0.0, 0.5, 1.0)})
        >>> pair = pairs_from_candidates(row, LabelRule(metrics=("luminance",), temperatures=(0.5,)))[0]
        >>> pair.id, round(pair.label, 4), pair.scores
        ('7:2-0', 0.8808, {'luminance': (1.0, 0.0)})
    """
    listed = label_scores(candidates.scores, rules, pairs=pairs, row=candidates.id)
    return [labelled_pair(candidates, one, rules) for one in listed if not one.dropped]


def relabel(pair: Pair, rules: Rules) -> Pair | None:
    """The pair under the rules, its images swapped where the rejected one is better; None where it is dropped.

    Id and scores stay; the label is at least 0.5. The provenance's parameters get "label": the rules, and whether the
    images stand the other way round than the other parameters have them. A mask, which says where the two images
    differ, stays with a swapped pair if their sizes agree.

    Args:
        pair: with scores; the metric "label" is its own label.
        rules: one, or several with their shares.

    Raises:
        DiffalignError: a metric is missing (with the nearest), ambiguous or not finite, naming the row.

    Example:
        >>> from PIL import Image
        >>> from diffalign.data import LabelRule
        >>> white, black = (Image.new("RGB", (5, 6), colour) for colour in ("white", "black"))
        >>> pair = Pair(id="7", prompt="night", chosen=white, rejected=black, scores={"clip": (0.1, 0.3)})
        >>> found = relabel(pair, LabelRule(metrics=("clip",), temperatures=(0.1,)))
        >>> round(found.label, 4), found.scores, found.chosen is black
        (0.8808, {'clip': (0.3, 0.1)}, True)
        >>> relabel(pair, LabelRule(metrics=("clip",), min_gaps=(0.5,))) is None
        True
    """
    (found,) = label_scores(pair_as_candidates(pair).scores, rules, pairs="all", row=pair.id)
    return None if found.dropped else turned(pair, found, rules)


def labelled_pair(candidates: CandidateSet, found: LabelledPair, rules: Rules) -> Pair:
    """Two candidates as a pair; see ``pairs_from_candidates``."""
    one, other = found.chosen, found.rejected
    hashes = candidates.provenance.sha256
    parameters = {"candidates": {"set": candidates.id, "images": [one, other]}, "label": {"rules": _told(rules)}}
    return Pair(
        id=pair_id(candidates.id, found),
        prompt=candidates.prompt,
        chosen=candidates.images[one],
        rejected=candidates.images[other],
        label=found.label,
        scores={
            metric: (all_[one], all_[other]) for metric, all_ in candidates.scores.items() if metric != LABEL_METRIC
        },
        provenance=_with(candidates.provenance, (hashes[one], hashes[other]) if hashes else (), parameters),
    )


def pair_id(set_id: str, found: LabelledPair) -> str:
    """The id of a pair of a candidate set, which no other pair of any set has."""
    return f"{set_id}:{found.chosen}-{found.rejected}"


def turned(pair: Pair, found: LabelledPair, rules: Rules) -> Pair:
    """A pair under its new label, with its images swapped where that says so; see ``relabel``."""
    before = pair.provenance.parameters.get("label")
    was_swapped = isinstance(before, dict) and before.get("swapped") is True
    swapped = found.chosen == 1
    told = {"label": {"rules": _told(rules), "swapped": swapped != was_swapped}}
    if not swapped:
        return replace(pair, label=found.label, provenance=_with(pair.provenance, pair.provenance.sha256, told))
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        mask=pair.mask if pair.mask is None or pair.mask.size == pair.rejected.size else None,
        label=found.label,
        scores={metric: (second, first) for metric, (first, second) in pair.scores.items()},
        provenance=_with(pair.provenance, pair.provenance.sha256[::-1], told),
    )


def _told(rules: Rules) -> list[dict[str, Any]]:
    return [dump_config(rule) for rule in as_rules(rules)]


def _with(origin: Provenance, hashes: tuple[str, ...], parameters: dict[str, Any]) -> Provenance:
    return replace(origin, sha256=hashes, parameters={**origin.parameters, **parameters})
