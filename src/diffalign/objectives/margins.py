"""What the losses on pairs share: errors against a frozen reference, the preference logit, checks of settings."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.contract import same_shape
from diffalign.objectives.dpo import pair_metrics

__all__ = ["excesses", "margin_metrics", "preference_logit", "require_between", "require_positive"]


def excesses(
    chosen_err: Tensor, rejected_err: Tensor, ref_chosen_err: Tensor, ref_rejected_err: Tensor
) -> tuple[Tensor, Tensor]:
    """Policy error minus reference error on both images; nothing flows into the reference.

    Args:
        chosen_err: (B,) policy error on the chosen image.
        rejected_err: (B,) policy error on the rejected image.
        ref_chosen_err: (B,) reference error on the chosen image.
        ref_rejected_err: (B,) reference error on the rejected image.

    Returns:
        (B,) for the chosen and (B,) for the rejected image; below 0 is better than the reference.

    Raises:
        ValueError: shapes differ.
    """
    same_shape(
        chosen_err=chosen_err,
        rejected_err=rejected_err,
        ref_chosen_err=ref_chosen_err,
        ref_rejected_err=ref_rejected_err,
    )
    return chosen_err - ref_chosen_err.detach(), rejected_err - ref_rejected_err.detach()


def preference_logit(chosen_excess: Tensor, rejected_excess: Tensor, beta: float) -> Tensor:
    """The logit of Diffusion-DPO, z = -beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)].

    Args:
        chosen_excess: (B,) of ``excesses``.
        rejected_excess: (B,) of ``excesses``.
        beta: strength, above 0.

    Returns:
        (B,).

    Raises:
        ValueError: beta is not above 0.
    """
    require_positive(beta=beta)
    return -beta / 2 * (chosen_excess - rejected_excess)


def margin_metrics(z: Tensor, chosen_excess: Tensor, rejected_excess: Tensor) -> dict[str, Tensor]:
    """``pair_metrics`` for losses whose slope in z is not the logistic one: without gradient_weight."""
    metrics = pair_metrics(z, chosen_excess, rejected_excess)
    return {name: value for name, value in metrics.items() if name != "gradient_weight"}


def require_positive(**settings: float) -> None:
    """Check that settings are above 0.

    Raises:
        ValueError: one is not.
    """
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"expected {name} above 0, got {value}")


def require_between(low: float, high: float, **settings: float) -> None:
    """Check that settings lie from ``low`` to ``high``, ends included.

    Raises:
        ValueError: one does not.
    """
    for name, value in settings.items():
        if not low <= value <= high:
            raise ValueError(f"expected {name} from {low} to {high}, got {value}")
