"""What a beta is called elsewhere: the same strength under other code bases' conventions."""

from __future__ import annotations

from diffalign.objectives.margins import require_positive

__all__ = ["LOGISTIC", "beta_elsewhere"]

LOGISTIC = (
    "cdpo", "cw_dpo", "diffusion_dpo", "diffusion_npo", "dmpo", "hinge", "lambda_listwise", "rank_dpo", "sdpo",
    "sdpo_batch", "smpo", "soft_dpo",
)  # fmt: skip
"""Objectives of ``z = beta/2 (d_w - d_l)``, d the reference's error minus the policy's, errors means over elements."""


def beta_elsewhere(beta: float, *, num_elements: int) -> dict[str, float]:
    """The settings of other code bases under which their logit is ``beta/2 (d_w - d_l)`` too.

    Args:
        beta: in Diffusion-DPO's convention.
        num_elements: C h w of a latent.

    Returns:
        By code base: Diffusion-DPO's own (also RealAlign, flow_grpo, Flow-Factory, Linear-DPO, PGD); diffusers' and
        Diffusion-NPO's, without the factor 1/2; the margin of a hinge such as Diffusion-DRO's with true noise; the
        factor of summed errors, which in the Diffusion-DPO paper is beta T omega, in RankDPO the logit's.

    Raises:
        ValueError: beta or num_elements is not above 0.

    Example:
        >>> beta_elsewhere(2000.0, num_elements=16384)["summed errors"]
        0.06103515625
    """
    require_positive(beta=beta, num_elements=num_elements)
    return {
        "Diffusion-DPO": beta,
        "DGPO with two images": beta,
        "diffusers and Diffusion-NPO": beta / 2,
        "hinge margin": 2 / beta,
        "summed errors": beta / (2 * num_elements),
    }
