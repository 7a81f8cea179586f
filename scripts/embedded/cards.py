"""Write the embedded models' cards from the measured figures."""

from __future__ import annotations

from typing import Any

from common import OUT

from diffalign.core import write_text
from diffalign.data.photographs import PHOTOGRAPHS

HEAD = """---
license: apache-2.0
library_name: {library}
---

# {title}

"""

PHOTOS = (
    f"The training strips (52 % of the area) of the {len(PHOTOGRAPHS)} photographs inside the scikit-image and "
    "scikit-learn wheels; NOTICE names each with its author and licence. Validation strips (22 %) watched the training; "
    "held-out strips (26 %) gave the figures below and nothing else. Crops are 32x32 pixels."
)


def write_cards(results: dict[str, Any]) -> None:
    """Write README.md of each model folder, and one over all of them with every figure."""
    parameters = results["parameters"]
    vae = results["autoencoder"]
    samples = results["tiny-sd"]["samples"]
    bodies = {
        "tiny-sd": f"""Stable Diffusion 1.x in small: AutoencoderKL ({parameters["vae"]:,} parameters, 32x32 pixels to 4x16x16
latents), CLIP text encoder ({parameters["text_encoder"]:,}), UNet ({parameters["unet"]:,}), epsilon prediction.

**Data.** {PHOTOS} 60 % of the training crops are blurred, over-compressed, noisy, posterised or patched, and their
captions do not say so: the model draws such flaws, and there is something real to align.

**Training.** `scripts/embedded/autoencoder.py`, then `scripts/embedded/tiny_sd.py`, with their default settings.

**Measured on held-out strips.** {_samples_table(samples)}

Autoencoder: {_autoencoder_line(vae["held_out"])}

**Limits.** It knows {len(PHOTOGRAPHS)} subjects and the words of their captions. It exists to test and show alignment
methods, not to make pictures.""",
        "tiny-sd3": """A Stable Diffusion 3 pipeline: rectified flow, joint-attention transformer, two CLIP encoders and T5, all with
random weights, around the autoencoder of tiny-sd. It exists so that the code of this family runs in tests; its samples
are noise. Made by `scripts/embedded/tiny_sd3.py`.""",
        "tiny-clip": f"""A CLIPModel ({parameters["tiny-clip"]:,} parameters): the stand-in for PickScore and CLIP score. *In-training*:
it may filter data and choose checkpoints, so no claim rests on it.

**Data.** {PHOTOS} Clean crops with plain captions, flawed crops with captions that name the flaw, and for each image its
own caption with another condition as a hard negative.

**Training.** `scripts/embedded/tiny_clip.py` with its default settings.

**Measured on held-out strips.**

{_table(results["tiny-clip"]["held_out"], CLIP_ROWS)}""",
        "tiny-judge": f"""A ResNet ({parameters["tiny-judge"]:,} parameters) whose logits are 16 subjects, "clean" and ten families of
flaws. Realism is the log-odds of clean against all flaws together; the pooled features serve KID. *Held-out*: another
architecture, width, seed and corpus than tiny-clip's; curation, selection and training never touch it.

**Data.** {PHOTOS} Half of the crops carry one of ten flaws: the five of tiny-sd's corpus and five others.

**Training.** `scripts/embedded/tiny_judge.py` with its default settings.

**Measured on held-out strips.**

{_table(results["tiny-judge"]["held_out"], JUDGE_ROWS)}""",
    }
    for name, body in bodies.items():
        library = "diffusers" if name.startswith("tiny-sd") else "transformers"
        write_text(OUT / name / "README.md", HEAD.format(library=library, title=name) + body + "\n")
    write_text(OUT / "README.md", _overview(results))


CLIP_ROWS = {
    "subject_accuracy": "subject named (16 choices, zero-shot, half of the crops flawed)",
    "clean_over_": "clean crop outscores a crop with {} on the plain caption",
}
JUDGE_ROWS = {
    "subject_accuracy": "subject named (16 choices, clean crops)",
    "realism_accuracy": "clean told from flawed at log-odds 0",
    "auc_": "area under the ROC curve, clean against {}",
}


def _table(figures: dict[str, float], rows: dict[str, str]) -> str:
    lines = ["| figure | value |", "|---|---|"]
    for key, value in figures.items():
        prefix = next(p for p in rows if key.startswith(p))
        lines.append(f"| {rows[prefix].format(key.removeprefix(prefix).replace('_', ' '))} | {value:.3f} |")
    return "\n".join(lines)


def _samples_table(samples: dict[str, dict[str, float]]) -> str:
    lines = [
        "tiny-judge looks at samples of DPM-Solver++, one per caption and seed:\n",
        "| setting | images | subject as asked | worst subject | judged clean |",
        "|---|---|---|---|---|",
    ]
    for name, row in samples.items():
        shares = " | ".join(f"{row[key]:.3f}" for key in ("subject_accuracy", "lowest_subject", "judged_clean"))
        lines.append(f"| {name} | {row['images']} | {shares} |")
    return "\n".join(lines)


def _autoencoder_line(figures: dict[str, float]) -> str:
    return (
        f"{figures['psnr']:.1f} dB (mean over crops {figures['mean_psnr']:.1f} dB), "
        f"{100 * figures['laplacian_kept']:.0f} % of the Laplacian variance kept."
    )


def _overview(results: dict[str, Any]) -> str:
    vae, machine = results["autoencoder"], results["machine"]
    curve = "\n".join(
        f"| {row['step']} | {row['psnr']:.2f} | {row['mean_psnr']:.2f} | {100 * row['laplacian_kept']:.1f} % |"
        for row in vae["curve"]
        if row["step"] in (100, 200, 400, 800) or row is vae["curve"][-1]
    )
    flaws = "\n".join(f"| {name} | {value:.3f} |" for name, value in vae["flaw_auc_after_round_trip"].items())
    return f"""## Measured

Figures by `python scripts/embedded/measure.py` ({machine["processor"]}, {machine["threads"]} threads, torch
{results["versions"].get("torch", "")}). All four folders together: {results["megabytes"]:.1f} MB. Held-out strips unless said otherwise.

### Autoencoder of tiny-sd

Held-out crops: {_autoencoder_line(vae["held_out"])} During training, on validation crops:

| step | PSNR of the mean error, dB | mean PSNR, dB | Laplacian variance kept |
|---|---|---|---|
{curve}

Flaws survive the round trip: tiny-judge tells decoded flawed crops from decoded clean ones with this area under the ROC
curve.

| flaw | area |
|---|---|
{flaws}

### Samples of tiny-sd

{_samples_table(results["tiny-sd"]["samples"])}

### tiny-clip

{_table(results["tiny-clip"]["held_out"], CLIP_ROWS)}

### tiny-judge

{_table(results["tiny-judge"]["held_out"], JUDGE_ROWS)}
"""
