"""Normalized Attention Guidance (NAG): away from a negative prompt, or a negative adapter, within cross-attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffalign.core import DiffalignError
from diffalign.guidance.contract import BASE, BASE_ALONE, Branch, Pass, Site
from diffalign.guidance.registry import register_guide
from diffalign.guidance.strength import check_equal_shapes, check_window
from diffalign.models import adapter_update

__all__ = ["NAG", "nag"]

_EPSILON = 1e-6
_PHI_SDXL, _PHI_SD15 = 2.0, 1.0  # Table 5
_ROLE = "nag_negative"
_UNUSUAL = ("norm_q", "norm_k", "norm_cross", "group_norm", "spatial_norm")


def nag(positive: Tensor, negative: Tensor, *, phi: float, tau: float, alpha: float) -> Tensor:
    """Extrapolate attention outputs away from negative ones, with a bound on how much they grow.

        Zt = Z+ + phi (Z+ - Z-)
        r  = |Zt|_1 / |Z+|_1                per token, over channels
        Z  = alpha Zt min(1, tau / r) + (1 - alpha) Z+

    Norms are taken in float32 with 1e-6 as their least value. phi = 0 or alpha = 0 gives Z+, and so does Z- = Z+ for
    tau >= 1.

    Args:
        positive: Z+ (..., tokens, channels): attention to the prompt, heads joined, before the output projection.
        negative: Z-, attention of the same queries to the negative prompt, same shape.
        phi: strength; the authors' code calls phi + 1 its nag_scale.
        tau: bound on the growth of a token's 1-norm.
        alpha: share of the guided output, in [0, 1].

    Returns:
        The shape of ``positive``.

    Raises:
        ValueError: shapes differ.

    Source:
        Chen et al. 2025, NAG, arXiv 2505.21179. The 1-norm is that of the released SDXL and SD 3.5 code. Departures:
        the guard of the norms, where each release has its own.

    Example:
        >>> import torch
        >>> nag(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]), phi=2.0, tau=1.5, alpha=0.5)
        tensor([[4.1250, 0.8750]])
    """
    check_equal_shapes(positive, negative)
    extrapolated = positive + phi * (positive - negative)
    size = positive.float().abs().sum(dim=-1, keepdim=True).clamp(min=_EPSILON)
    growth = extrapolated.float().abs().sum(dim=-1, keepdim=True).clamp(min=_EPSILON) / size
    bounded = extrapolated * (tau / growth).clamp(max=1.0).to(positive.dtype)
    return alpha * bounded + (1 - alpha) * positive


@register_guide("nag", strength="phi", negative="negative_adapter")
@dataclass(frozen=True, kw_only=True)
class NAG:
    """NAG in the cross-attention of a UNet (SD 1.x, SDXL), on the rows with the prompt.

    Give a negative prompt, one for all images or one per prompt of the call, or a negative LoRA: then Z- comes from
    the same prompt under that LoRA's updates to the keys and values of cross-attention, without another pass of the
    network. That variant is this package's; train the LoRA with ``lora.targets`` attn2.to_k and attn2.to_v.

    It works without text guidance, and with it: the pipeline's own negative prompt is another input.

    Attributes:
        negative_prompt: what images shall not show.
        negative_adapter: LoRA file or folder that takes its place; layers other than attn2.to_k and attn2.to_v are
            ignored.
        phi: strength, 0 is off; None is the published one, 2 for SDXL and 1 for SD 1.x. The authors' nag_scale is
            phi + 1: see ``with_scale``.
        tau: bound on growth, published for both: 2.5.
        alpha: share, published for both: 0.5; 0 is off.
        start: progress from which it is on; see ``PreferenceGuide``.
        stop: progress before which it is on. With 0.25 most of the effect remains at a fraction of the cost.
    """

    negative_prompt: str | Sequence[str] | None = None
    negative_adapter: str | Path | None = None
    phi: float | None = None
    tau: float = 2.5
    alpha: float = 0.5
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if (self.negative_prompt is None) == (self.negative_adapter is None):
            raise DiffalignError(
                f"expected a negative_prompt or a negative_adapter, got {self.negative_prompt!r} and "
                f"{self.negative_adapter!r}"
            )
        if (self.phi is not None and not self.phi >= 0) or not self.tau > 0 or not 0 <= self.alpha <= 1:
            raise DiffalignError(
                f"expected phi >= 0, tau > 0 and alpha in [0, 1], got {self.phi}, {self.tau}, {self.alpha}"
            )
        check_window(self.start, self.stop)

    @classmethod
    def with_scale(cls, scale: float, **settings: Any) -> NAG:
        """From the authors' nag_scale S = phi + 1, where 1 is off."""
        return cls(phi=scale - 1, **settings)

    @property
    def _on(self) -> bool:
        return self.phi != 0 and self.alpha != 0

    @property
    def adapters(self) -> Mapping[str, str | Path]:
        """The negative one, which is never on: its updates are read by the attention layers."""
        return {_ROLE: self.negative_adapter} if self._on and self.negative_adapter is not None else {}

    @property
    def timed(self) -> bool:
        """Whether there is a window."""
        return self._on and (self.start > 0 or self.stop < 1)

    @property
    def needs_branches(self) -> bool:
        """Rows with the prompt are guided."""
        return self._on

    @property
    def held(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def passes(self, progress: float) -> Mapping[str, Pass]:
        """The base's, in which attention is guided."""
        return BASE_ALONE

    def combine(self, preds: Mapping[str, Tensor], *, branch: Branch, progress: float) -> Tensor:
        """What the base predicts."""
        return preds[BASE]

    def is_on(self, progress: float) -> bool:
        """Whether attention is guided at this progress."""
        return self._on and self.start <= progress and (progress < self.stop or self.stop == 1)

    @contextmanager
    def hooked(self, site: Site) -> Iterator[None]:
        """Inside the block every cross-attention layer has a processor that guides."""
        layers = _cross_attention(site) if self._on else {}
        before = {name: layer.processor for name, layer in layers.items()}
        if layers:
            phi = self.phi if self.phi is not None else _published_phi(site.denoiser)
            processor = _Processor(self, site, phi, self._negative_text(site, layers))
        try:
            for name, layer in layers.items():
                layer.processor = _Guided(before[name], processor)
            yield
        finally:
            for name, layer in layers.items():
                layer.processor = before[name]

    def _negative_text(self, site: Site, layers: Mapping[str, Any]) -> Tensor | None:
        if self.negative_prompt is None:
            projections = [part for layer in layers.values() for part in (layer.to_k, layer.to_v)]
            if not any(site.adapters[_ROLE] in getattr(part, "scaling", {}) for part in projections):
                raise DiffalignError(
                    f"{self.negative_adapter} adapts no keys or values of cross-attention, the layers that NAG uses: "
                    "train it on attn2.to_k and attn2.to_v"
                )
            return None
        prompts = [self.negative_prompt] if isinstance(self.negative_prompt, str) else list(self.negative_prompt)
        pipeline = site.pipeline
        if not any(getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")):
            raise DiffalignError(
                "a negative_prompt needs the pipeline's text encoder, and this pipeline has none: load it for the "
                "block, or use a negative_adapter"
            )
        with torch.no_grad():
            encoded = pipeline.encode_prompt(
                prompt=prompts,
                device=pipeline._execution_device,
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
            )
        text: Tensor = encoded[0]
        return text


@dataclass(frozen=True, eq=False)
class _Processor:
    """What the processors of all layers share."""

    guide: NAG
    site: Site
    phi: float
    negative_text: Tensor | None  # (prompts, tokens, width)

    def attend(self, layer: Any, hidden_states: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """Guided attention output (B, tokens, channels), before the output projection."""
        rows = list(self.site.conditional)
        query, key, value = layer.to_q(hidden_states), layer.to_k(text), layer.to_v(text)
        positive = _attention(layer, query, key, value, mask)
        if self.negative_text is None:
            name = self.site.adapters[_ROLE]
            key, value = _updated(layer.to_k, name, text, key), _updated(layer.to_v, name, text, value)
        else:
            negative_text = self._negative_rows(text, rows)
            key, value, mask = layer.to_k(negative_text), layer.to_v(negative_text), None
        mask = mask if mask is None else mask[rows]
        negative = _attention(layer, query[rows], key[rows], value[rows], mask)
        settings = {"phi": self.phi, "tau": self.guide.tau, "alpha": self.guide.alpha}
        positive[rows] = nag(positive[rows], negative, **settings)
        return positive

    def _negative_rows(self, text: Tensor, rows: Sequence[int]) -> Tensor:
        """The text with the negative prompt of its image in each guided row; the other rows are not used."""
        assert self.negative_text is not None
        prompts, samples = len(self.negative_text), self.site.num_samples
        if samples % prompts:
            raise DiffalignError(
                f"expected one negative prompt, or one per prompt of the call: got {prompts} for {samples} images"
            )
        if self.negative_text.shape[1:] != text.shape[1:]:
            raise DiffalignError(
                f"expected a negative prompt of {tuple(text.shape[1:])} tokens and channels, got "
                f"{tuple(self.negative_text.shape[1:])}"
            )
        of = [sample * prompts // samples for sample in self.site.samples]
        replaced = text.clone()
        replaced[list(rows)] = self.negative_text.to(text)[of]
        return replaced


class _Guided:
    """One layer's processor: the one of before, or guided attention while a guided pass is running."""

    def __init__(self, before: Any, shared: _Processor) -> None:
        self._before, self._shared = before, shared

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        site = self._shared.site
        if encoder_hidden_states is None or not site.conditional or not self._shared.guide.is_on(site.progress):
            output: Tensor = self._before(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
            return output
        if attention_mask is not None:
            length = encoder_hidden_states.shape[1]
            attention_mask = attn.prepare_attention_mask(attention_mask, length, len(hidden_states), out_dim=4)
        attended = self._shared.attend(attn, hidden_states, encoder_hidden_states, attention_mask)
        output = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            output = output + hidden_states
        guided: Tensor = output / attn.rescale_output_factor
        return guided


def _attention(layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    def heads(part: Tensor) -> Tensor:
        return part.reshape(*part.shape[:2], layer.heads, -1).transpose(1, 2)

    attended = scaled_dot_product_attention(heads(query), heads(key), heads(value), attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).to(query.dtype)


def _updated(projection: nn.Module, name: str, text: Tensor, output: Tensor) -> Tensor:
    """The projection's output as if the adapter were on as well."""
    if name not in getattr(projection, "scaling", {}):
        return output
    updated: Tensor = (output + adapter_update(projection, name, text)).to(output.dtype)
    return updated


def _published_phi(denoiser: Any) -> float:
    return _PHI_SDXL if denoiser.config.addition_embed_type == "text_time" else _PHI_SD15


def _cross_attention(site: Site) -> dict[str, Any]:
    """Cross-attention layers by name.

    Raises:
        DiffalignError: the network has none that NAG can guide.
    """
    kind = type(site.denoiser).__name__
    if kind != "UNet2DConditionModel":
        raise DiffalignError(f"NAG here guides the cross-attention of UNets (SD 1.x, SDXL); {kind} has no such layers")
    if site.compiled:
        raise DiffalignError("NAG does not work with a compiled denoiser: its attention layers change at every step")
    if site.denoiser.config.encoder_hid_dim_type is not None:  # type: ignore[union-attr]
        raise DiffalignError("NAG expects text alone in cross-attention, and this UNet's also sees images")
    layers = {
        name: layer
        for name, layer in site.denoiser.named_modules()
        if isinstance(layer, Attention) and name.endswith("attn2")
    }
    for name, layer in layers.items():
        plain = type(layer.processor) in (AttnProcessor, AttnProcessor2_0) and not layer.fused_projections
        usual = all(getattr(layer, part) is None for part in _UNUSUAL)
        if not plain or not usual:
            raise DiffalignError(
                f"NAG needs diffusers' own attention processor in {name}, found {type(layer.processor).__name__}: call "
                "pipe.unet.set_default_attn_processor() or unload what replaced it"
            )
    return layers
