"""Curation with the settings of papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffalign.core import Registry

if TYPE_CHECKING:  # curation takes seconds to import, and plans of training do without it
    from diffalign.curate import CurateConfig

__all__ = ["CURATIONS", "realalign_curation"]

CURATIONS: Registry[Callable[[str], CurateConfig]] = Registry("recipe of curation")


@CURATIONS.register("realalign")
def realalign_curation(photos: str) -> CurateConfig:
    """RealAlign's funnel: 512 pairs of photographs and copies with the salient part inpainted by SD 1.5.

    Needs ``u2net.onnx`` (locate.weights), the inpainting model, PickScore, and a vision-language model that tells
    artwork from photographs (select.photographic; empty leaves that out).

    Source:
        RealAlign 2026, arXiv 2605.19839: [code] the release, [history] an earlier revision. Departures: the drawn part
        is put back into the photograph; seeds are fixed; photographs below 512 pixels are dropped, not enlarged. The
        gap of 0.02 on PickScore / 26 is 0.52 of the raw score used here; the release compares raw scores with 0.02.
    """
    from diffalign.curate import CurateConfig, KeepConfig, SelectConfig

    return CurateConfig(
        photos=photos,
        size=512,  # [code] short side, centre crop
        select=SelectConfig(
            min_contrast=0.0,
            max_likeness=-1,  # [code] first row of each id; no search for duplicates
            above_mean=("colourfulness",),  # [history] the release compares real with fake instead
            photographic="vlm:Qwen/Qwen3-VL-8B-Instruct",  # [code] asked yes or no
        ),
        locate={"name": "onnx_saliency", "weights": "u2net.onnx"},  # [code] 320 pixels, cut at 0.5
        min_area=0.001,  # [not stated] any area
        max_area=0.999,
        model="stable-diffusion-v1-5/stable-diffusion-inpainting",  # [code]
        degrade={"name": "inpaint", "num_steps": 50, "guidance_scale": 7.5},  # [code]
        rewards=("pickscore",),  # [code] raw
        keep=KeepConfig(min_gap=0.52, keep=512, rank_by="score"),  # [history]
    )
