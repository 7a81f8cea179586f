"""The settings of a curation."""

from __future__ import annotations

from typing import Any, Literal

from diffalign.core import Config, setting
from diffalign.curate.select import RankBy

__all__ = ["EMBEDDED", "CurateConfig", "KeepConfig", "SelectConfig"]

EMBEDDED = "photographs"
Precision = Literal["float32", "bfloat16", "float16"]


class SelectConfig(Config):
    """Which photographs are used at all."""

    min_contrast: float = setting(0.01, "least standard deviation of the grey values; below it is blank", ge=0, le=1)
    max_likeness: int = setting(
        4, "bits of 64 by which perceptual hashes of duplicates differ at most; -1 keeps duplicates", unit="bits",
        ge=-1, le=16,
    )  # fmt: skip
    min_scores: dict[str, float] = setting({}, "rewards by name, and the least score of a photograph in each")
    above_mean: tuple[str, ...] = setting(
        (), "rewards in which a photograph must exceed the mean of all: RealAlign takes colourfulness"
    )
    photographic: str = setting(
        "", "what tells artwork from photographs: a text-image reward, or vlm:<captioner>; empty asks nothing"
    )


class KeepConfig(Config):
    """Which pairs are kept."""

    min_gap: float = setting(
        0.52, "by which the photograph must lead in the first reward", unit="of the reward", ge=0,
        source="RealAlign: 0.02 x 26, a raw PickScore",
    )  # fmt: skip
    min_agreement: int = setting(1, "rewards, of those that score, that must prefer the photograph", ge=1)
    keep: int = setting(0, "of those, the best so many; 0 for all", unit="pairs", ge=0)
    rank_by: RankBy = setting("score", "best by the photograph's first score, or by its gap", source="RealAlign")
    clusters: int = setting(
        0, "spread what is kept evenly over so many clusters of like photographs; 0 does not look", ge=0
    )
    cluster_by: str = setting("tiny-clip", "text-image reward whose image features are clustered")


class CurateConfig(Config):
    """Preference pairs from real photographs."""

    photos: str = setting(
        EMBEDDED, "folder, Parquet, tar, table, URL or hub:user/dataset; or photographs: crops of the embedded ones"
    )
    count: int = setting(0, "use the first so many; 0 for all", unit="photographs", ge=0)
    size: int = setting(0, "side of the square that each becomes; 0 for the model's own", unit="pixels", ge=0)
    captioner: str = setting("", "model or endpoint that captions photographs without caption; empty drops those")
    select: SelectConfig = setting(SelectConfig(), "which photographs are used")
    locate: dict[str, Any] = setting({"name": "colour_saliency"}, "where to damage: a locator's name and its settings")
    min_area: float = setting(0.15, "least share of an image that is damaged", gt=0, lt=1)
    max_area: float = setting(0.5, "largest share of an image that is damaged", gt=0, lt=1)
    model: str = setting("tiny-sd", "folder, hub id or embedded name of the model that draws damage")
    precision: Precision = setting("float32", "of the weights that draw; half of it is what a GPU likes")
    degrade: dict[str, Any] = setting({"name": "inpaint"}, "how to damage: a degradation's name and its settings")
    feather: float = setting(0.0, "width of a smooth edge inside the mask; 0 for a hard one", unit="pixels", ge=0)
    rewards: tuple[str, ...] = setting(("tiny-clip",), "what scores both images of a pair; the first one ranks")
    keep: KeepConfig = setting(KeepConfig(), "which pairs are kept")
    audit: bool = setting(True, "look for traces by which the sides of a pair could be told apart without the damage")
    batch_size: int = setting(4, "images at a time", unit="images", ge=1)
    shard_size: int = setting(16, "photographs in a shard, in whole batches: what a kill loses", ge=1)
    threads: int = setting(1, "of torch in each worker; fixed, since sums depend on it", ge=1)
    seed: int = setting(0, "of the crops, the masks and the damage", ge=0)
