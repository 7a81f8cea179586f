"""Merging: exact LoRAs of LoRAs, the measured error, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from guidance_helpers import lora, quiet
from torch import Tensor
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.core import DiffalignError, torch_generator
from diffalign.guidance import Contrastive, attach, merge, merge_error, module_hash
from diffalign.models import load_adapter, load_denoiser, load_family, remove_adapter, using

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ROLES = ("positive", "negative")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LoRAs of tiny-sd with a small effect."""
    pipe, folder = load_family("tiny-sd").pipeline(), tmp_path_factory.mktemp("loras")
    return tuple(lora(pipe, folder, seed, size=0.002, targets=TARGETS) for seed in (1, 2))  # type: ignore[return-value]


def predict(family: Any) -> Tensor:
    noisy = torch.randn(2, *family.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pred: Tensor = family.predict(noisy, torch.tensor([900, 300]), family.encode_prompts(["a cat", ""]))
    return pred


def weights(family: Any, path: Path) -> dict[str, Tensor]:
    """The update that a LoRA makes to every layer it is on."""
    load_adapter(family.denoiser, path, "x", prefix="unet")
    layers = {name: layer for name, layer in family.denoiser.named_modules() if hasattr(layer, "get_delta_weight")}
    found = {name: layer.get_delta_weight("x").detach() for name, layer in layers.items()}
    remove_adapter(family.denoiser, "x")
    return found


def test_the_error_is_a_share_of_the_guidance() -> None:
    """Guided moves (3, 4), merged misses 1 of it: 1/5."""
    assert merge_error(torch.zeros(2), torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])) == 0.2


def test_a_merged_lora_is_the_sum_of_its_parts_in_weights(modules: tuple[Path, Path], tmp_path: Path) -> None:
    positive, negative = modules
    report = merge("tiny-sd", tmp_path / "merged", positive=positive, negative=negative, scale=2.0, num_timesteps=2)
    assert 0 < report.error < 0.3 and report.num_probes == 6 and list(report.by_timestep) == ["999", "499"]
    family, fused = load_family("tiny-sd"), load_family("tiny-sd")
    p, n, both = (weights(family, path) for path in (positive, negative, tmp_path / "merged"))
    for name, update in both.items():
        torch.testing.assert_close(update, 2 * (p[name] - n[name]), rtol=1e-5, atol=1e-8)
    record = json.loads((tmp_path / "merged/merge.json").read_text())
    assert record["scale"] == 2.0 and record["measured"]["error"] == report.error and not record["forced"]
    assert record["measured"]["worst_error"] == max(report.by_timestep.values()) > report.error
    whole = merge(
        "tiny-sd", tmp_path / "whole", positive=positive, negative=negative, scale=2.0, num_timesteps=2, form="denoiser"
    )
    assert whole.error == pytest.approx(report.error, abs=1e-4)
    load_adapter(family.denoiser, tmp_path / "merged", "merged", prefix="unet")
    load_denoiser(fused.denoiser, tmp_path / "whole")
    with using(family.denoiser, "merged"):
        torch.testing.assert_close(predict(family), predict(fused), rtol=1e-4, atol=1e-5)
    # a whole denoiser is a module too: at scale 1 PGD's merge is that denoiser, and exact
    again = merge(
        "tiny-sd", tmp_path / "again", positive=tmp_path / "whole", scale=1.0, num_timesteps=1, form="denoiser"
    )
    assert again.error < 1e-3
    record = json.loads((tmp_path / "again/merge.json").read_text())  # the same hash as that of a guide or an adapter
    assert record["modules"] == {"positive": {"path": str(tmp_path / "whole"), "hash": module_hash(tmp_path / "whole")}}


@pytest.mark.parametrize(("model", "second"), [("tiny-sd", "499"), ("tiny-sd3", "750")])
def test_the_error_is_that_of_the_states_of_guided_sampling(model: str, second: str, tmp_path: Path) -> None:
    """By diffusers' own DDIM, or Euler of a flow: the second state of two steps, guided, at a text guidance of 3."""
    family, prompts = load_family(model), ["a cat", "a street", "a tree"]
    pipe = quiet(family.pipeline())
    paths = {name: lora(pipe, tmp_path, seed, size=0.05, targets=TARGETS) for seed, name in enumerate(ROLES)}
    settings: dict[str, Any] = {**paths, "scale": 2.0, "num_timesteps": 2, "guidance_scale": 3.0, "prompts": prompts}
    report = merge(model, tmp_path / "merged", **settings, force=True)
    grid: dict[str, Any] = {"num_inference_steps": 2, "sigmas": [1.0, 0.5]}
    if model == "tiny-sd":
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, timestep_spacing="trailing"
        )
        del grid["sigmas"]
    states = []
    noise = torch.randn(3, *family.latent_shape(32, 32), generator=torch_generator("merge probes", 0))
    size = {"height": 32, "width": 32, "output_type": "latent", "guidance_scale": 3.0}
    with attach(pipe, Contrastive(**paths, scale=2.0)):
        pipe(
            prompts,
            latents=noise,
            callback_on_step_end=lambda *given: states.append(given[3]["latents"]) or {},
            **grid | size,
        )
    for name, path in (paths | {"merged": tmp_path / "merged"}).items():
        load_adapter(family.denoiser, path, name, prefix=family.lora_prefix)

    def predicted(name: str | None) -> Tensor:
        with torch.no_grad(), using(family.denoiser, name):
            uncond, cond = (
                family.predict(states[0], torch.full((3,), int(second)), family.encode_prompts(texts))
                for texts in ([""] * 3, prompts)
            )
        return uncond + 3 * (cond - uncond)

    base, positive, negative, merged = (predicted(name) for name in (None, *ROLES, "merged"))
    expected = merge_error(base, base + 2 * (positive - negative), merged)
    assert report.by_timestep[second] == pytest.approx(expected, rel=1e-3) and expected > 0.01


def test_one_timestep_above_the_threshold_is_refused(modules: tuple[Path, Path], tmp_path: Path) -> None:
    positive, negative = modules
    settings: dict[str, Any] = {"positive": positive, "negative": negative, "scale": 8.0, "num_timesteps": 2}
    report = merge("tiny-sd", tmp_path / "forced", **settings, force=True)
    between = (report.error + report.worst_error) / 2
    with pytest.raises(DiffalignError, match=f"up to {report.worst_error:.0%} of the guidance"):
        merge("tiny-sd", tmp_path / "merged", **settings, max_error=between)
    with pytest.raises(DiffalignError, match="not finite"):
        merge("tiny-sd", tmp_path / "merged", **settings | {"scale": 1e38, "force": True})


def test_above_the_threshold_it_is_refused_unless_forced(tmp_path: Path) -> None:
    """Strong modules at a high scale are not linear any more."""
    pipe = load_family("tiny-sd").pipeline()
    strong, other = (lora(pipe, tmp_path, seed, size=0.5, targets=TARGETS) for seed in (3, 4))
    out, run = tmp_path / "merged", CliRunner().invoke
    arguments = ["merge", "tiny-sd", str(out), "--positive", str(strong), "--negative", str(other), "--scale", "5"]
    arguments += ["--timesteps", "1", "--prompt", "a cat"]
    with pytest.raises(DiffalignError, match="lower the scale"):
        merge("tiny-sd", out, positive=strong, negative=other, scale=5.0, num_timesteps=1, prompts=["a cat"])
    assert not out.exists()
    forced = run(app, [*arguments, "--force"])
    assert forced.exit_code == 0 and "share of the guidance" in forced.output, forced.output
    assert json.loads((out / "merge.json").read_text())["forced"]
    assert run(app, arguments).exit_code == 2  # it exists


def test_mistakes_are_told_before_anything_is_loaded(modules: tuple[Path, Path], tmp_path: Path) -> None:
    positive, negative = modules
    for settings, message in (
        ({"scale": 0.0}, "scale above 0"),
        ({"form": "qlora"}, "the form lora or denoiser"),
        ({"prompts": []}, "at least one prompt"),
        ({"positive": tmp_path / "nothing"}, "found nothing"),
    ):
        given = {"positive": positive, "negative": negative, "scale": 1.0} | settings
        with pytest.raises(DiffalignError, match=message):
            merge("no such model", tmp_path / "out", **given)  # type: ignore[arg-type]
