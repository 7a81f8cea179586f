"""The settings of a curation."""

from __future__ import annotations

from diffalign.core import Config, setting
from diffalign.curate.select import RankBy

__all__ = ["EMBEDDED", "CurateConfig"]

EMBEDDED = "photographs"


class CurateConfig(Config):
    """Preference pairs from real photographs."""

    model: str = setting(..., "folder, hub id or embedded name of the model that does the damage")
    photos: str = setting(EMBEDDED, "folder of photographs, or photographs: crops of the embedded ones")
    count: int = setting(0, "use the first so many; 0 for all of a folder", unit="photographs", ge=0)
    size: int = setting(0, "side of the square that each becomes; 0 for the model's own", unit="pixels", ge=0)
    min_area: float = setting(0.15, "least share of an image that is damaged", gt=0, lt=1)
    max_area: float = setting(0.5, "largest share of an image that is damaged", gt=0, lt=1)
    num_steps: int = setting(50, "of inpainting", unit="steps", ge=1, source="RealAlign")
    guidance_scale: float = setting(7.5, "of text guidance while inpainting; 1 is off", ge=1, source="RealAlign")
    batch_size: int = setting(4, "images at a time", unit="images", ge=1)
    reward: str = setting("tiny-clip", "what scores both images of a pair")
    min_gap: float = setting(
        0.52, "by which the photograph must lead", unit="of the reward", ge=0, source="RealAlign: 0.02 x 26, a logit"
    )
    keep: int = setting(0, "of those, the best so many; 0 for all", unit="pairs", ge=0)
    rank_by: RankBy = setting("score", "best by the photograph's score, or by the gap", source="RealAlign")
    seed: int = setting(0, "of the crops and of the noise")
