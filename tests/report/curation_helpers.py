"""What a curation leaves, as plain data."""

from __future__ import annotations

from typing import Any

from report_helpers import estimate


def make_funnel() -> dict[str, Any]:
    return {
        "photos": 1200,
        "passed": {"read": 1193, "locate": 1193, "gap": 1170, "keep": 17},
        "dropped": {
            "read": {"too_small": 2, "corrupt": 5},
            "gap": {"gap too small": 23},
            "keep": {"not best": 1153},
        },
        "captions_cleaned": 3,
    }


def interval(mean: float, half: float, method: str = "cluster_t") -> dict[str, Any]:
    return {**estimate(mean, half), "method": method}


def make_audit(**changes: Any) -> dict[str, Any]:
    leak = {
        "auc": interval(0.82, 0.06), "single_auc": interval(0.71, 0.05), "by_group": {"tone": 0.55, "blocking": 0.9},
        "cause": "8x8 blocking: the rejected side went through JPEG",
    }  # fmt: skip
    alike = interval(0.5, 0, "constant")
    files = {"auc": alike, "single_auc": alike, "by_group": {}, "cause": ""}
    audit = {
        "num_pairs": 5000, "num_audited": 2000, "num_ties": 4, "num_swapped": 0,
        "outside": {"num_pairs": 1990, "num_differing": 13, "largest": 6.0},
        "parity": {"area": "outside", "num_sizes_differ": 0, "num_modes_differ": 0,
                   "differences": {"blocking": interval(-0.4, 0.1), "rolloff": interval(0.2, 0.3),
                                   "bytes_per_pixel": interval(1.5, 0.5)}},
        "leak": leak, "no_leak": "", "file_leak": files,
        "rewards": {"clip@1": interval(0.9, 0.05), "pickscore@2": interval(0.3, 0.1)},
        "between": [{"first": "clip@1", "second": "pickscore@2", "agreement": 0.625, "kappa": None}],
        "severity": {"area": {"low": 0.0, "high": 1.0, "counts": [0, 3, 8, 1] + [0] * 16},
                     "damage": {"low": 0.0, "high": 256.0, "counts": [0] * 32}},
        "duplicates": {"num_identical": 1234, "num_near": 6, "num_equal_sides": 0, "num_contradicting": 2},
        "captions": {"num_empty": 0, "num_long": 9, "num_repeated": 11, "most_repeated": [["a cat", 7]],
                     "fit": {"num_scored": 50, "num_misfits": 5, "share_beaten": 0.875}},
        "warnings": ["pixels outside the mask differ in 13 of 1990 pairs"],
    }  # fmt: skip
    return {**audit, **changes}
