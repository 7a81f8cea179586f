"""Every form of guidance that the finding compares, and how it is sampled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from guidance_modules import STEPS, TAGS, Modules
from PIL import Image
from torch import Tensor

from diffalign.core import atomic_path, read_jsonl, write_jsonl
from diffalign.data import from_tensor
from diffalign.guidance import (
    CHATS,
    NAG,
    PGD,
    Contrastive,
    DiffusionNPO,
    Guide,
    PlusMinus,
    attach,
    contrastive,
    merge,
)
from diffalign.models import Family, is_denoiser, load_adapter, load_denoiser, load_family, remove_adapter, using
from diffalign.rewards import load_reward
from diffalign.sample import PromptRow, family_sampler, sample_images, sample_latents
from objectives import CHOOSER, prompts_of

TEXT, BATCH = 2.0, 32
SPLITS = {"validation": (24, 1), "held_out": (32, 2)}  # prompts, images of each
NEGATIVE_PROMPT = "a blurry, noisy photo"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to sample, over its strengths.

    Attributes:
        strengths: of whatever it is that has one.
        evaluations: of the denoiser per image, in units of the base's.
        guide: modules and strength -> the guide.
        adapter: modules and strength -> the LoRA or denoiser that the base is replaced by.
        text: strength -> scale of text guidance.
        steps: strength -> solver steps.
        attach: further options of ``attach``.
        shared: whether it is the same for all training seeds.
        own: a sampler of its own in place of the family's: (family, modules, strength) -> images of prompts and noise.
        prefix: of the prompts.
        negative_prompt: of text guidance.
    """

    strengths: Sequence[float] = (1.0,)
    evaluations: float = 1.0
    guide: Callable[[Modules, float], Guide] | None = None
    adapter: Callable[[Modules, float], Path] | None = None
    text: Callable[[float], float] = field(default=lambda strength: TEXT)
    steps: Callable[[float], int] = field(default=lambda strength: STEPS)
    attach: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    own: Callable[[Family, Modules, float], Any] | None = None
    prefix: str = ""
    negative_prompt: str = ""


def contrast(positive: str, negative: str, **options: Any) -> Callable[[Modules, float], Guide]:
    return lambda modules, w: Contrastive(positive=modules[positive], negative=modules[negative], scale=w, **options)


def merged(positive: str, negative: str) -> Callable[[Modules, float], Path]:
    return lambda modules, w: merge_once(modules[positive], modules[negative], w)


FORMS: dict[str, Form] = {
    "base": Form(shared=True),
    "base, more steps": Form(strengths=(2, 3), evaluations=3, steps=lambda n: int(STEPS * n), shared=True),
    "base, text guidance": Form(strengths=(1.5, 3, 4, 6), text=lambda g: g, shared=True),
    "NAG, prompt": Form(
        strengths=(1, 2, 4),
        guide=lambda modules, phi: NAG(negative_prompt=NEGATIVE_PROMPT, phi=phi),
        shared=True,
    ),
    "SFT": Form(adapter=lambda modules, _: modules["sft"]),
    "DPO": Form(adapter=lambda modules, _: modules["dpo"]),
    "DPO, more steps": Form(
        evaluations=2, adapter=lambda modules, _: modules["dpo"], steps=lambda _: 2 * STEPS, strengths=(2,)
    ),
    "Stage 1 + 2": Form(adapter=lambda modules, _: modules["stage2"]),
    "Stage 1 + 2, more steps": Form(
        evaluations=2, adapter=lambda modules, _: modules["stage2"], steps=lambda _: 2 * STEPS, strengths=(2,)
    ),
    "Stage 1 + 2, text guidance": Form(
        strengths=(3, 4), adapter=lambda modules, _: modules["stage2"], text=lambda g: g
    ),
    "PGD (DPO)": Form(
        strengths=(1.5, 2, 4, 8), evaluations=2, guide=lambda modules, w: PGD(tuned=modules["dpo"], scale=w)
    ),
    "PGD (Stage 1 + 2)": Form(
        strengths=(1.5, 2, 3, 4), evaluations=2, guide=lambda modules, w: PGD(tuned=modules["stage2"], scale=w)
    ),
    "cPGD (SFT)": Form(strengths=(0.5, 1, 2, 4, 8), evaluations=3, guide=contrast("sft", "negative")),
    "cPGD (SFT), cheap": Form(
        strengths=(1, 2),
        evaluations=1.6,
        guide=contrast("sft", "negative", stop=0.6),
        attach={"refresh_every": 2},
    ),
    "cPGD (DPO, reversed)": Form(strengths=(0.5, 1, 2, 4, 8), evaluations=3, guide=contrast("dpo", "reversed")),
    "cPGD (DPO, plus-minus)": Form(
        strengths=(4,), evaluations=3, guide=lambda modules, w: PlusMinus(module=modules["dpo"], scale=w)
    ),
    "cPGD (Stage 1 + 2, degraded)": Form(strengths=(0.5, 1, 2, 4), evaluations=3, guide=contrast("stage2", "negative")),
    "cPGD (SFT), merged": Form(strengths=(0.5, 1, 2), adapter=merged("sft", "negative")),
    "cPGD (DPO, reversed), merged": Form(strengths=(2, 4, 8), adapter=merged("dpo", "reversed")),
    "NPO (reversed DPO)": Form(
        strengths=(1.5, 2, 3, 4, 6),
        text=lambda g: g,
        guide=lambda modules, _: DiffusionNPO(negative=modules["reversed"]),
    ),
    "NPO (DPO, reversed DPO)": Form(
        strengths=(1.5, 2, 3, 4, 6),
        text=lambda g: g,
        guide=lambda modules, _: DiffusionNPO(positive=modules["dpo"], negative=modules["reversed"]),
    ),
    "NPO (SFT on degraded)": Form(
        strengths=(1.5, 2, 3, 4, 6),
        text=lambda g: g,
        guide=lambda modules, _: DiffusionNPO(negative=modules["negative"]),
    ),
    "Self-NPO": Form(
        strengths=(1.5, 2, 3, 4, 6),
        text=lambda g: g,
        guide=lambda modules, _: DiffusionNPO(negative=modules["self_npo"]),
    ),
    "CHATS (SFT)": Form(
        strengths=(1.5, 2, 3, 4, 6),
        text=lambda g: g,
        guide=lambda modules, _: CHATS(winner=modules["sft"], loser=modules["negative"]),
    ),
    "NAG, adapter": Form(strengths=(1, 4), guide=lambda modules, phi: NAG(negative_adapter=modules["nag"], phi=phi)),
    "tagged SFT, bad as negative prompt": Form(
        adapter=lambda modules, _: modules["tagged"], prefix=TAGS[0], negative_prompt=TAGS[1]
    ),
    "cPGD (tagged SFT)": Form(
        strengths=(1, 2, 4), evaluations=3, own=lambda family, modules, w: tagged_sampler(family, modules["tagged"], w)
    ),
    "cPGD (own samples)": Form(evaluations=3, guide=contrast("own_all+", "own_all-")),
    "cPGD (own samples, disjoint)": Form(evaluations=3, guide=contrast("own_apart+", "own_apart-")),
    "fine-tune": Form(adapter=lambda modules, _: modules["tinted"]),
    "fine-tune + cPGD (SFT)": Form(
        evaluations=3,
        adapter=lambda modules, _: modules["tinted"],
        guide=contrast("sft", "negative"),
    ),
    "fine-tune + PGD (DPO)": Form(
        strengths=(4,),
        evaluations=2,
        adapter=lambda modules, _: modules["tinted"],
        guide=lambda modules, w: PGD(tuned=modules["dpo"], scale=w),
    ),
}
GRID = {  # of text guidance and preference scale, the first training seed alone
    f"text guidance {text:g}": Form(
        strengths=(0, 1, 2), evaluations=3, text=lambda _, text=text: text, guide=contrast("sft", "negative")
    )
    for text in (1.5, 3.0, 5.0)
}
TRANSFER = tuple(name for name in FORMS if name.startswith("fine-tune"))
BEST_OF = 3


def merge_once(positive: Path, negative: Path, scale: float) -> Path:
    """The first-order merge, whatever its error, which is kept in its merge.json."""
    out = positive.parents[1] / f"merged {positive.parent.name} {negative.parent.name} {scale:g}"
    if not out.exists():
        merge("tiny-sd", out, positive=positive, negative=negative, scale=scale, guidance_scale=TEXT, force=True)
    return out


def draw_forms(
    folder: Path, modules: Modules, forms: Mapping[str, Form], *, splits: Sequence[str] = tuple(SPLITS)
) -> None:
    """Images of every form at every strength; a folder that is finished is left alone."""
    for name, form in forms.items():
        needed = splits if form.shared or len(form.strengths) > 1 else ("held_out",)  # nothing to choose
        for strength in form.strengths:
            for split in needed:
                out = folder / split / f"{name} @ {strength:g}"
                if not (out / "manifest.jsonl").exists():
                    draw_form(out, split, name, form, modules, strength)


def draw_form(
    out: Path,
    split: str,
    name: str,
    form: Form,
    modules: Modules,
    strength: float,
    *,
    size: tuple[int, int] | None = None,
) -> None:
    count, seeds = size or SPLITS[split]
    rows = [PromptRow(id=row.id, prompt=form.prefix + row.prompt) for row in prompts_of(split)[:count]]
    if name == "base":
        seeds *= BEST_OF  # the further ones are for best_of; measure() leaves them out
    family = base_family() if form.own is None and not replaces(form, modules, strength) else load_family("tiny-sd")
    with prepared(family, form, modules, strength):
        if form.own:
            sampler = form.own(family, modules, strength)
        else:
            sampler = family_sampler(
                family,
                num_steps=form.steps(strength),
                guidance_scale=form.text(strength),
                negative_prompt=form.negative_prompt,
                height=32,
                width=32,
                predict=family.predict,
                adapter=f"{name} @ {strength:g}",
            )
        sample_images(sampler, rows, out, num_seeds=seeds, batch_size=BATCH)


@cache
def base_family() -> Family:
    """One for all forms that leave it as it was."""
    return load_family("tiny-sd")


def replaces(form: Form, modules: Modules, strength: float) -> bool:
    """Whether the form overwrites the denoiser's weights."""
    return form.adapter is not None and is_denoiser(form.adapter(modules, strength))


@contextmanager
def prepared(family: Family, form: Form, modules: Modules, strength: float) -> Iterator[None]:
    """Inside the block the family predicts as the form says."""
    with ExitStack() as stack:
        if form.adapter:
            weights = form.adapter(modules, strength)
            if is_denoiser(weights):
                load_denoiser(family.denoiser, weights)
            else:
                load_adapter(family.denoiser, weights, "shown", prefix=family.lora_prefix)
                stack.callback(remove_adapter, family.denoiser, "shown")
                stack.enter_context(using(family.denoiser, "shown"))
        if form.guide:
            guide = form.guide(modules, strength)
            stack.enter_context(attach(family.pipeline(), guide, text_rows="uncond_cond", **form.attach))
        yield


@dataclass(frozen=True)
class TaggedSampler:
    """cPGD with one conditional module: the same LoRA under the prompt with either tag in front.

    m = m_base(c) + w (m(good, c) - m(bad, c)) on both text branches; c of the unconditional one is empty.
    """

    family: Family
    scale: float
    latent_shape: tuple[int, int, int]
    identity: Mapping[str, Any]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], noise: Tensor) -> list[Image.Image]:
        """Images."""
        family = self.family
        texts = [[""] * len(prompts), list(prompts)]
        sides = [
            {
                key: torch.cat([family.encode_prompts([tag + text for text in part])[key] for part in texts])
                for key in family.condition_shapes
            }
            for tag in TAGS
        ]

        def predict(noisy: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
            base = family.predict(noisy, timesteps, condition)
            with using(family.denoiser, "tagged"):
                good, bad = (family.predict(noisy, timesteps, side) for side in sides)
            return contrastive(base, good, bad, scale=self.scale)

        latents = sample_latents(
            family,
            family.encode_prompts(prompts),
            noise,
            num_steps=STEPS,
            guidance_scale=TEXT,
            negative_condition=family.encode_prompts([""] * len(prompts)),
            predict=predict,
        ).latents
        return [from_tensor(image) for image in family.decode(latents)]


def tagged_sampler(family: Family, module: Path, scale: float) -> TaggedSampler:
    load_adapter(family.denoiser, module, "tagged", prefix=family.lora_prefix)
    plain = family_sampler(family, num_steps=STEPS, guidance_scale=TEXT, height=32, width=32)
    identity = dict(plain.identity) | {"adapter": f"tagged {module.parent.name} x {scale:g}"}
    return TaggedSampler(family, scale, plain.latent_shape, identity)


def best_of(folder: Path, split: str) -> None:
    """Of three images of the base with noise of their own, the one that tiny-clip prefers."""
    for number in range(2, BEST_OF + 1):
        out = folder / f"base, best of @ {number}"
        if (out / "manifest.jsonl").exists():
            continue
        base, seeds = folder / "base @ 1", SPLITS[split][1]
        rows = list(read_jsonl(base / "manifest.jsonl"))
        images = [Image.open(base / row["file"]).convert("RGB") for row in rows]
        scores = load_reward(CHOOSER)(images, [row["prompt"] for row in rows]).tolist()
        groups: dict[tuple[str, int], list[tuple[float, dict[str, Any]]]] = defaultdict(list)
        for row, score in zip(rows, scores, strict=True):
            if row["seed"] < seeds * number:
                groups[row["prompt_id"], row["seed"] % seeds].append((score, row))
        kept = []
        for (_, seed), group in groups.items():
            best = max(group, key=lambda one: one[0])[1]
            with atomic_path(out / best["file"]) as temporary:
                temporary.write_bytes((base / best["file"]).read_bytes())
            kept.append(best | {"seed": seed, "adapter": f"best of {number}"})
        write_jsonl(out / "manifest.jsonl", kept)
