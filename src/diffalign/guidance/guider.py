"""Preference guidance as a guider of diffusers' modular pipelines, with config, save and load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput, rescale_noise_cfg
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffalign.core import DiffalignError, unknown
from diffalign.guidance.contrastive import contrastive
from diffalign.guidance.pgd import pgd

__all__ = ["PreferenceGuider"]

_COND, _UNCOND = "pred_cond", "pred_uncond"


class PreferenceGuider(BaseGuidance):  # type: ignore[misc]
    """cPGD, or PGD without a negative module, before text guidance.

    A modular pipeline calls the denoiser once per prediction: six times a step with text guidance. The modules are
    LoRAs of the pipeline, loaded as usual: ``pipe.load_lora_weights(folder, adapter_name="positive")``. They are on in
    their own predictions alone; other LoRAs stay as they are.

    Args:
        preference_scale: w; 0 is off and makes no extra pass.
        guidance_scale: g of text guidance, in diffusers' form; 1 is off.
        guidance_rescale: of text guidance, 0 is off.
        positive: name of the LoRA fitted to chosen images, or of the tuned one.
        negative: name of the LoRA fitted to rejected images; "" for PGD.
        start: share of the steps before which preference guidance is off, as in diffusers' guiders.
        stop: share of the steps from which it is off again.
        enabled: False turns preference and text guidance off.

    Example:
        ``pipe.update_components(guider=PreferenceGuider(preference_scale=2.0))``
    """

    _input_predictions = [  # noqa: RUF012  (the base class asks for a list)
        f"{branch}{module}" for module in ("", "_positive", "_negative") for branch in (_COND, _UNCOND)
    ]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        preference_scale: float = 2.0,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        positive: str = "positive",
        negative: str = "negative",
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        """See the class."""
        super().__init__(start, stop, enabled)
        if not preference_scale >= 0:
            raise DiffalignError(f"expected a preference_scale of at least 0, got {preference_scale}")
        self.preference_scale = preference_scale
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self._modules = {"_positive": positive} | ({"_negative": negative} if negative else {})
        self._before: list[tuple[BaseTunerLayer, Any, bool]] = []
        self._ending: RemovableHandle | None = None

    @property
    def num_conditions(self) -> int:
        """Predictions at this step."""
        return len(self._wanted())

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that was prepared last is one with the prompt."""
        return bool(self._wanted()[self._count_prepared - 1].startswith(_COND))

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """Inputs of every prediction."""
        return [self._prepare_batch(data, int(name.startswith(_UNCOND)), name) for name in self._wanted()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """Inputs of every prediction, from a block's state."""
        return [
            self._prepare_batch_from_block_state(input_fields, data, int(name.startswith(_UNCOND)), name)
            for name in self._wanted()
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Turns the next prediction's module on and the other one off."""
        self._restore()  # of a prediction that was prepared and never made
        name = self._wanted()[self._count_prepared]
        self._count_prepared += 1
        known = getattr(denoiser, "peft_config", None) or {}
        modules = list(self._modules.values())
        for module in modules:
            if self.preference_scale and module not in known:
                raise unknown("LoRA of the pipeline", module, known)
        wanted = [module for ending, module in self._modules.items() if name.endswith(ending)]
        self._ending = denoiser.register_forward_hook(lambda *_: self._restore(), always_call=True)
        for layer in denoiser.modules():
            if isinstance(layer, BaseTunerLayer):
                self._before.append((layer, layer._active_adapter, layer._disable_adapters))
                others = [] if layer._disable_adapters else [one for one in layer.active_adapters if one not in modules]
                layer._active_adapter = others + [one for one in wanted if one in layer.scaling]
                layer._disable_adapters = False

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Puts every layer's adapters back, unless the end of the prediction has, as it does after an exception too."""
        self._restore()

    def _restore(self) -> None:
        for layer, active, disabled in self._before:
            layer._active_adapter, layer._disable_adapters = active, disabled
        self._before = []
        if self._ending:
            self._ending.remove()
            self._ending = None

    def forward(self, **preds: Tensor) -> Any:
        """The formula on each branch, then text guidance.

        m_b = base_b + w (positive_b - negative_b),    m = m_uncond + g (m_cond - m_uncond)
        """
        cond = self._preferred(preds, _COND)
        if _UNCOND not in preds:
            return GuiderOutput(pred=cond, pred_cond=cond, pred_uncond=None)
        uncond = self._preferred(preds, _UNCOND)
        pred = uncond + self.guidance_scale * (cond - uncond)
        if self.guidance_rescale > 0:
            pred = rescale_noise_cfg(pred, cond, self.guidance_rescale)
        return GuiderOutput(pred=pred, pred_cond=cond, pred_uncond=uncond)

    def _preferred(self, preds: Mapping[str, Tensor], branch: str) -> Tensor:
        base, positive = preds[branch], preds.get(f"{branch}_positive")
        if positive is None:
            return base
        negative = preds.get(f"{branch}_negative")
        if negative is None:
            return pgd(base, positive, scale=self.preference_scale)
        return contrastive(base, positive, negative, scale=self.preference_scale)

    def _wanted(self) -> list[str]:
        """Names of the predictions at this step, ordered by module."""
        branches = [_COND] if not self._enabled or self.guidance_scale == 1 else [_COND, _UNCOND]
        modules = ["", *self._modules] if self._enabled and self.preference_scale and self._in_window() else [""]
        return [f"{branch}{module}" for module in modules for branch in branches]

    def _in_window(self) -> bool:
        if self._num_inference_steps is None:
            return True
        first, end = int(self._start * self._num_inference_steps), int(self._stop * self._num_inference_steps)
        return bool(first <= self._step < end)
