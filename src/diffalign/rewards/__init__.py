"""Images and prompts to scores, under identities that say which scores may be compared."""

from __future__ import annotations

from diffalign.rewards.aesthetic import AestheticReward
from diffalign.rewards.clip import ClipReward, clip_score, hessel_clip_score, percent_clip_score, pickscore
from diffalign.rewards.contract import REWARDS, UNVERSIONED, Reward, RewardCard
from diffalign.rewards.converters import collapse_affine, convert_reward
from diffalign.rewards.image_reward import ImageReward
from diffalign.rewards.judge import JudgeReward, realism, shows_subject
from diffalign.rewards.loading import FunctionReward, load_reward
from diffalign.rewards.pixels import ClipRecipe, LetterboxRecipe
from diffalign.rewards.scoring import Scores, clip_features, judge_features, score
from diffalign.rewards.sgp import StyleGap
from diffalign.rewards.statistics import (
    StatisticReward,
    colourfulness,
    high_frequency_share,
    jpeg_size,
    laplacian_variance,
    luminance,
    saturation,
)

__all__ = [
    "REWARDS",
    "UNVERSIONED",
    "AestheticReward",
    "ClipRecipe",
    "ClipReward",
    "FunctionReward",
    "ImageReward",
    "JudgeReward",
    "LetterboxRecipe",
    "Reward",
    "RewardCard",
    "Scores",
    "StatisticReward",
    "StyleGap",
    "clip_features",
    "clip_score",
    "collapse_affine",
    "colourfulness",
    "convert_reward",
    "hessel_clip_score",
    "high_frequency_share",
    "jpeg_size",
    "judge_features",
    "laplacian_variance",
    "load_reward",
    "luminance",
    "percent_clip_score",
    "pickscore",
    "realism",
    "saturation",
    "score",
    "shows_subject",
]
