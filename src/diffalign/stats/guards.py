"""The alarm of reward hacking: what was optimised rises while what was not falls."""

from __future__ import annotations

from collections.abc import Mapping

from diffalign.core import DiffalignError
from diffalign.stats.intervals import Estimate

__all__ = ["reward_hacking_alarms"]


def reward_hacking_alarms(
    in_training: Mapping[str, Estimate], held_out: Mapping[str, Estimate], diversity: Mapping[str, Estimate]
) -> list[str]:
    """Alarms over differences from the base model, from their intervals.

    An alarm rings for each held-out metric whose interval lies below 0 while that of some in-training metric lies above
    0, and for each measure of diversity whose interval lies below 0.

    Args:
        in_training: by metric, tuned minus base, of what was optimised or chose data or checkpoints; higher is better.
        held_out: the same, of metrics that had no part in training, declared beforehand.
        diversity: by measure, tuned minus base: per-prompt Vendi, pairwise distance, recall, coverage.

    Returns:
        A sentence for each alarm; empty when none rings.

    Raises:
        DiffalignError: a metric is both in-training and held-out.

    Example:
        >>> pick = Estimate(mean=0.5, low=0.4, high=0.6, se=0.05, num_prompts=200, method="cluster_t")
        >>> vqa = Estimate(mean=-0.2, low=-0.3, high=-0.1, se=0.05, num_prompts=200, method="cluster_t")
        >>> reward_hacking_alarms({"pick": pick}, {"vqa": vqa}, {})
        ['held-out vqa fell (-0.2, -0.3 to -0.1) while in-training pick rose']
    """
    both = sorted(set(in_training) & set(held_out))
    if both:
        raise DiffalignError(f"expected held-out metrics that had no part in training, got {', '.join(both)} as both")
    risen = [name for name, estimate in in_training.items() if estimate.low > 0]
    fell = {name: f"fell ({each.mean:.3g}, {each.low:.3g} to {each.high:.3g})" for name, each in _below(held_out)}
    alarms = [f"held-out {name} {how} while in-training {', '.join(risen)} rose" for name, how in fell.items() if risen]
    return alarms + [
        f"diversity {name} fell ({each.mean:.3g}, {each.low:.3g} to {each.high:.3g})"
        for name, each in _below(diversity)
    ]


def _below(estimates: Mapping[str, Estimate]) -> list[tuple[str, Estimate]]:
    return [(name, each) for name, each in estimates.items() if each.high < 0]
