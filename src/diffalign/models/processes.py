"""Noise processes: how clean latents are noised and what the network predicts.

Both noise linearly, ``noisy = a x0 + b noise``:

    VariancePreserving (SD 1.x, 2.x)   a = sqrt(abar_t), b = sqrt(1 - abar_t), timesteps are integers 0..T-1
    RectifiedFlow      (SD 3.x)        a = 1 - s,        b = s,                timesteps are T s

``timesteps`` are always what the network is fed. Arithmetic is float32, or float64 if a tensor argument is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffalign.models.conversions import (
    FLOW_CONVERSIONS,
    VP_CONVERSIONS,
    Conversions,
    Prediction,
    per_sample,
    working_dtype,
)

__all__ = ["Process", "RectifiedFlow", "VariancePreserving", "denoising_error", "process_from_scheduler"]

Distribution = Literal["uniform", "logit_normal"]


class Process:
    """What both processes share once ``levels`` gives a and b. Tensors are (B, ...), timesteps (B,)."""

    velocity: ClassVar[Prediction]
    conversions: ClassVar[Conversions]
    distributions: ClassVar[tuple[Distribution, ...]]  # of training timesteps, the default first

    @property
    def prediction_type(self) -> Prediction:
        """What the network predicts, in the words of diffusers."""
        raise NotImplementedError

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of noise levels that training draws from."""
        raise NotImplementedError

    def levels(self, timesteps: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Signal and noise levels a, b, each (B,) in ``dtype``."""
        raise NotImplementedError

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """Noise levels (B,) as diffusers' samplers of this process count them."""
        raise NotImplementedError

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should predict, shape of ``latents``."""
        raise NotImplementedError

    def timesteps_at(self, index: Tensor) -> Tensor:
        """What the network is fed at entries (B,) of the training levels."""
        raise NotImplementedError

    def draw_timesteps(
        self,
        batch_size: int,
        generator: torch.Generator,
        *,
        distribution: Distribution | None = None,
        stratified: bool = False,
    ) -> Tensor:
        """Training timesteps: entry ``floor(T q)`` of the T levels, q uniform or ``sigmoid(N(0, 1))``.

        Args:
            batch_size: B.
            generator: source of the draw; the result is on its device.
            distribution: of q, "uniform" or, for the flow only and its default, "logit_normal".
            stratified: one draw in each of B equally likely strata, in random order; each entry alone is unchanged.

        Returns:
            (B,) what the network is fed: int64 for VP, float32 for the flow.

        Raises:
            ValueError: a distribution this process does not use.

        Source:
            VP: Ho et al. 2020. Flow: Esser et al. 2024, arXiv 2403.03206; as in published flow-DPO code, q indexes the
            shifted table and the loss gets no extra weight.
        """
        distribution = distribution or self.distributions[0]
        if distribution not in self.distributions:
            raise ValueError(f"expected distribution {' or '.join(self.distributions)}, got {distribution!r}")
        q = _uniform(batch_size, generator, stratified)
        if distribution == "logit_normal":
            q = torch.special.ndtri(q).sigmoid()
        index = (q * self.num_train_timesteps).long()
        return self.timesteps_at(index.clamp(max=self.num_train_timesteps - 1))  # rounding can bring q to 1

    def log_snr(self, timesteps: Tensor) -> Tensor:
        """Log signal-to-noise ratio ``2 log(a/b)``, (B,); -inf at pure noise, +inf at clean latents."""
        a, b = self.levels(timesteps)
        return 2 * (a / b).log()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents ``a latents + b noise``.

        Args:
            latents: (B, ...) clean, VAE-scaled.
            noise: standard normal, shape of ``latents``.
            timesteps: (B,) what the network is fed.

        Returns:
            Shape of ``latents``, float32 (float64 for float64 inputs).

        Raises:
            ValueError: shapes differ, or a timestep lies outside the process.
        """
        latents, noise, a, b = self._prepare(latents, noise, timesteps)
        return a * latents + b * noise

    def convert(self, value: Tensor, noisy: Tensor, timesteps: Tensor, *, source: Prediction, to: Prediction) -> Tensor:
        """Turns one quantity of a denoising step into another.

        Conversions are affine, so mixing predictions with weights that sum to 1 (text guidance) commutes with them.

        Args:
            value: (B, ...) the known quantity.
            noisy: noisy latents, shape of ``value``.
            timesteps: (B,) what the network is fed.
            source: what ``value`` is.
            to: what is wanted.

        Returns:
            Shape of ``value``, float32 (float64 for float64 inputs).

        Raises:
            ValueError: a quantity this process does not know, shapes that differ, or a level where the formula divides
                by exactly 0: x0 from noise at pure noise, noise from x0 at clean latents. Near such a level rounding
                grows by 1/a or 1/b.
        """
        known = {one for one, _ in self.conversions}
        if source not in known or to not in known:
            raise ValueError(f"{type(self).__name__} converts between {sorted(known)}, got {source!r} to {to!r}")
        value, noisy, a, b = self._prepare(value, noisy, timesteps)
        if source == to:
            return value
        divisor, formula = self.conversions[source, to]
        if divisor and bool(((a if divisor == "a" else b) == 0).any()):
            end = "pure noise" if divisor == "a" else "clean latents"
            raise ValueError(
                f"{to} cannot be computed from {source} at {end}, where the formula divides by 0: leave out that "
                f"timestep or start from {self.velocity}; got timesteps {timesteps.tolist()}"
            )
        return formula(value, noisy, a, b)

    def to_x0(self, model_pred: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents that the network's output implies; see ``convert``."""
        return self.convert(model_pred, noisy, timesteps, source=self.prediction_type, to="sample")

    def to_noise(self, model_pred: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Noise that the network's output implies; see ``convert``."""
        return self.convert(model_pred, noisy, timesteps, source=self.prediction_type, to="epsilon")

    def to_velocity(self, model_pred: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Velocity (v or u) that the network's output implies; see ``convert``."""
        return self.convert(model_pred, noisy, timesteps, source=self.prediction_type, to=self.velocity)

    def to_score(self, model_pred: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Score, the gradient of log p(noisy), that the network's output implies; see ``convert``."""
        return self.convert(model_pred, noisy, timesteps, source=self.prediction_type, to="score")

    def from_x0(self, x0: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The network output that implies these clean latents; see ``convert``."""
        return self.convert(x0, noisy, timesteps, source="sample", to=self.prediction_type)

    def from_noise(self, noise: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The network output that implies this noise; see ``convert``."""
        return self.convert(noise, noisy, timesteps, source="epsilon", to=self.prediction_type)

    def from_velocity(self, velocity: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The network output that implies this velocity (v or u); see ``convert``."""
        return self.convert(velocity, noisy, timesteps, source=self.velocity, to=self.prediction_type)

    def from_score(self, score: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The network output that implies this score; see ``convert``."""
        return self.convert(score, noisy, timesteps, source="score", to=self.prediction_type)

    def _prepare(self, first: Tensor, second: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both tensors in the working precision and their levels as (B, 1, ..., 1)."""
        if first.shape != second.shape or first.ndim < 2:
            raise ValueError(
                f"expected two tensors of one shape (B, ...), got {tuple(first.shape)} and {tuple(second.shape)}"
            )
        if timesteps.shape != first.shape[:1]:
            raise ValueError(f"expected timesteps of shape ({len(first)},), got {tuple(timesteps.shape)}")
        dtype = working_dtype(first, second)
        levels = self.levels(timesteps, dtype=dtype)  # where they are: checking values on a GPU would wait for it
        a, b = (per_sample(level.to(first.device), first) for level in levels)
        return first.to(dtype), second.to(dtype), a, b


@dataclass(frozen=True, eq=False)
class VariancePreserving(Process):
    """``noisy = a x0 + b noise``, ``a = sqrt(abar_t)``, ``b = sqrt(1 - abar_t)``.

    Attributes:
        alphas_cumprod: (T,) float32, abar by timestep, decreasing; ends in 0 for zero-terminal-SNR schedules.
        prediction_type: epsilon, sample or v_prediction.
    """

    alphas_cumprod: Tensor
    prediction_type: Prediction = "epsilon"
    velocity: ClassVar[Prediction] = "v_prediction"
    conversions: ClassVar[Conversions] = VP_CONVERSIONS
    distributions: ClassVar[tuple[Distribution, ...]] = ("uniform",)

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"expected prediction_type epsilon, sample or v_prediction, got {self.prediction_type!r}")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> VariancePreserving:
        """The training schedule of a diffusers scheduler (DDPM, DDIM, PNDM, Euler, DPM++, ...).

        Raises:
            ValueError: the scheduler has no ``alphas_cumprod``, or serves a flow model.
        """
        if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("use_flow_sigmas", False):
            raise ValueError(
                f"expected a variance-preserving scheduler with alphas_cumprod, got {type(scheduler).__name__}; "
                "flow models are loaded with their FlowMatchEulerDiscreteScheduler"
            )
        return cls(scheduler.alphas_cumprod.float().cpu(), scheduler.config.get("prediction_type", "epsilon"))

    @property
    def num_train_timesteps(self) -> int:
        """T: timesteps are the integers 0..T-1, 0 the cleanest."""
        return len(self.alphas_cumprod)

    def levels(self, timesteps: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, each (B,) in ``dtype``; timesteps must be integers 0..T-1."""
        index = timesteps.long()
        inside = (index == timesteps) & (index >= 0) & (index < self.num_train_timesteps)
        if not bool(inside.all()):
            raise ValueError(
                f"expected integer timesteps in 0..{self.num_train_timesteps - 1}, got {timesteps.tolist()}"
            )
        abar = self.alphas_cumprod.to(timesteps.device, dtype)[index]
        return abar.sqrt(), (1 - abar).sqrt()

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """Noise-to-signal ratio ``b/a``, (B,), the sigmas of k-diffusion; inf at zero terminal SNR."""
        a, b = self.levels(timesteps)
        return b / a

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """By ``prediction_type``: the noise, the latents, or ``v = a noise - b latents``; shape of ``latents``."""
        latents, noise, a, b = self._prepare(latents, noise, timesteps)
        if self.prediction_type == "v_prediction":
            return a * noise - b * latents
        return noise if self.prediction_type == "epsilon" else latents

    def timesteps_at(self, index: Tensor) -> Tensor:
        """The integers 0..T-1 themselves."""
        return index


@dataclass(frozen=True, eq=False)
class RectifiedFlow(Process):
    """``noisy = (1 - s) x0 + s noise``, the network predicts ``u = noise - x0`` and is fed ``T s``.

    Attributes:
        table: (T,) float32, descending noise levels s that training draws from, already shifted.
    """

    table: Tensor
    velocity: ClassVar[Prediction] = "flow_prediction"
    conversions: ClassVar[Conversions] = FLOW_CONVERSIONS
    distributions: ClassVar[tuple[Distribution, ...]] = ("logit_normal", "uniform")

    @classmethod
    def from_scheduler(cls, scheduler: Any, *, mu: float | None = None) -> RectifiedFlow:
        """The training table that the config of a FlowMatchEulerDiscreteScheduler describes.

        The scheduler's own ``sigmas`` are not read: ``set_timesteps`` overwrites them.

        Args:
            scheduler: a FlowMatchEulerDiscreteScheduler.
            mu: the shift to train with; given exactly when the config says ``use_dynamic_shifting``.

        Raises:
            ValueError: another scheduler, inverted sigmas, ``mu`` missing or not wanted.
        """
        if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.invert_sigmas:
            raise ValueError(
                f"expected a FlowMatchEulerDiscreteScheduler without invert_sigmas, got {type(scheduler).__name__}; "
                "load the model with its own scheduler"
            )
        if scheduler.config.use_dynamic_shifting and mu is None:
            raise ValueError(
                "this scheduler shifts by resolution (use_dynamic_shifting): pass mu, the shift to train with"
            )
        if mu is not None and not scheduler.config.use_dynamic_shifting:
            raise ValueError(f"this scheduler has the fixed shift {scheduler.config.shift}: leave out mu")
        fresh = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
        return cls(fresh.sigmas if mu is None else fresh.time_shift(mu, 1.0, fresh.sigmas))

    @property
    def prediction_type(self) -> Prediction:
        """Always ``flow_prediction``."""
        return "flow_prediction"

    @property
    def num_train_timesteps(self) -> int:
        """T: the table's length, and the factor between s and what the network is fed (1000)."""
        return len(self.table)

    def levels(self, timesteps: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """``1 - s`` and ``s``, each (B,) in ``dtype``, for timesteps ``T s`` between 0 and T."""
        if timesteps.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"expected float32 timesteps, got {timesteps.dtype}, which merges neighbouring noise levels"
            )
        s = timesteps.to(dtype) / self.num_train_timesteps
        if not bool(((s >= 0) & (s <= 1)).all()):
            raise ValueError(f"expected timesteps in 0..{self.num_train_timesteps}, got {timesteps.tolist()}")
        return 1 - s, s

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """Noise levels s in [0, 1], (B,); 1 is pure noise."""
        return self.levels(timesteps)[1]

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """``u = noise - latents`` at every timestep; shape of ``latents``."""
        latents, noise, _, _ = self._prepare(latents, noise, timesteps)
        return noise - latents

    def timesteps_at(self, index: Tensor) -> Tensor:
        """``T s`` for entries of the table, 0 the noisiest."""
        return self.num_train_timesteps * self.table.to(index.device)[index]


def process_from_scheduler(scheduler: Any) -> VariancePreserving | RectifiedFlow:
    """The process a diffusers scheduler was made for; raises ValueError as the two ``from_scheduler`` do."""
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return RectifiedFlow.from_scheduler(scheduler)
    return VariancePreserving.from_scheduler(scheduler)


def denoising_error(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Per-sample error: the mean over C, H, W of the squared difference.

        E = mean((pred - target)^2);  with a mask m,  E = sum(m (pred - target)^2) / sum(m)

    Args:
        pred: (B, ...) in any float dtype; cast to float32 before subtracting (float64 stays).
        target: shape of ``pred``.
        mask: weights >= 0, shape of ``pred``, or (B, 1, H, W) to count for every channel; not all 0 in any sample.

    Returns:
        (B,) float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes differ, or a sample's mask is all 0.

    Example:
        >>> denoising_error(torch.ones(2, 4, 3, 5), torch.zeros(2, 4, 3, 5))
        tensor([1., 1.])
    """
    if pred.shape != target.shape or pred.ndim < 2:
        raise ValueError(f"expected one shape (B, ...), got {tuple(pred.shape)} and {tuple(target.shape)}")
    dtype = working_dtype(pred, target)
    squares = (pred.to(dtype) - target.to(dtype)).square()
    if mask is None:
        return squares.flatten(1).mean(1)
    one_channel = (len(pred), 1, *pred.shape[2:])
    if mask.shape not in (pred.shape, one_channel):
        raise ValueError(f"expected a mask of shape {tuple(pred.shape)} or {one_channel}, got {tuple(mask.shape)}")
    weights = mask.to(dtype).expand_as(squares)
    totals = weights.flatten(1).sum(1)
    if not bool((totals > 0).all()):
        raise ValueError(f"expected a mask above 0 somewhere in every sample, got sums {totals.tolist()}")
    return (weights * squares).flatten(1).sum(1) / totals


def _uniform(batch_size: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """(B,) float64 in [0, 1]; stratified draws one value in each of B equal parts and shuffles them."""
    u = torch.rand(batch_size, generator=generator, device=generator.device, dtype=torch.float64)
    if not stratified:
        return u
    part = torch.randperm(batch_size, generator=generator, device=generator.device)
    return (part + u) / batch_size
