"""Small inputs of a report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diffalign.core import write_jsonl
from diffalign.data import encode_png
from diffalign.types import Pair, Provenance

COLOURS = ("#c03020", "#2060c0", "#30a040", "#d0b020", "#803090")
HOSTILE = '<img src=x onerror="document.title=1"></script><script>document.title="run"</script> & "quoted"'


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Every visible text with the contrast of its colour to what lies behind it (WCAG 2.2: 4.5 is enough for any size).
CONTRASTS = """() => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0.9) return found;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script, .skip, .unseen")) continue;
    const style = getComputedStyle(element);
    const front = channels(element instanceof SVGElement ? style.fill : style.color);
    const [light, dark] = [luminance(front), luminance(behind(element))].sort((a, b) => b - a);
    found.push([(light + 0.05) / (dark + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""


def plain(colour: str, size: tuple[int, int] = (10, 7)) -> Image.Image:
    return Image.new("RGB", size, colour)


def make_pair(number: int = 0, **changes: Any) -> Pair:
    mask = Image.new("L", (10, 7))
    mask.paste(255, (2, 1, 6, 5))
    values = {
        "id": f"row-{number}",
        "prompt": f"prompt {number}",
        "chosen": plain(COLOURS[number % 5]),
        "rejected": plain(COLOURS[(number + 1) % 5]),
        "mask": mask,
        "scores": {"clip@1": (0.75, 0.25)},
        "provenance": Provenance(source="crops", license="CC0-1.0", method="blur", parameters={"radius": 3}, seed=7),
    }
    return Pair(**{**values, **changes})


def make_folder(
    folder: Path, prompts: Mapping[str, str], *, colour: str, seeds: Sequence[int] = (0,), failed: Sequence[str] = ()
) -> Path:
    """A folder as ``diffalign sample`` leaves it, every image of one colour."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, prompt in prompts.items():
        for seed in seeds:
            file = f"images/{name}-{seed}.png"
            (folder / file).write_bytes(encode_png(plain(colour)))
            status, file = ("not finite", "") if name in failed else ("ok", file)
            rows.append({"prompt_id": name, "prompt": prompt, "seed": seed, "file": file, "status": status})
    write_jsonl(folder / "manifest.jsonl", rows)
    return folder


def estimate(mean: float, half: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def make_results() -> dict[str, Any]:
    means = {"base": (0.08, -0.05, 1500), "dpo": (0.07, -0.02, 1700), "stage2": (0.05, 0.03, 2100)}
    models = {
        name: {
            "kid": estimate(kid, 0.005),
            "realism": estimate(realism, 0.01),
            "detail": estimate(detail, 60),
            "num_images": 1234,
        }
        for name, (kid, realism, detail) in means.items()
    }
    return {
        "models": models,
        "differences": [
            {"model": "stage2", "baseline": "base", "metric": "kid", **estimate(-0.03, 0.01)},
            {"model": "dpo", "baseline": "base", "metric": "kid", **estimate(-0.01, 0.02)},
            {"model": "stage2", "baseline": "base", "metric": "detail", **estimate(600, 80)},
        ],
        "win_rates": [{"model": "stage2", "baseline": "base", "metric": "realism", **estimate(0.7, 0.1)}],
        "roles": {"kid": "held-out", "realism": "in-training"},
        "higher_is_better": {"kid": False, "realism": True},
        "seconds": 98.4,
    }


def write_metrics(path: Path, *, num_steps: int = 50, alarm_at: int = 0) -> Path:
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 1 / step, "margin": step / 10} for step in range(1, num_steps + 1)
    ]
    if alarm_at:
        rows[alarm_at - 1]["alarms"] = ["saturation"]
    write_jsonl(path, rows)
    return path
