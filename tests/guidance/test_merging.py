"""Merging: exact LoRAs of LoRAs, the measured error, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from guidance_helpers import lora
from torch import Tensor
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.core import DiffalignError
from diffalign.guidance import merge, merge_error, module_hash
from diffalign.models import load_adapter, load_denoiser, load_family, remove_adapter, using

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


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
    assert 0 < report.error < 0.3 and report.num_probes == 8 and len(report.by_timestep) == 2
    family, fused = load_family("tiny-sd"), load_family("tiny-sd")
    p, n, both = (weights(family, path) for path in (positive, negative, tmp_path / "merged"))
    for name, update in both.items():
        torch.testing.assert_close(update, 2 * (p[name] - n[name]), rtol=1e-5, atol=1e-8)
    record = json.loads((tmp_path / "merged/merge.json").read_text())
    assert record["scale"] == 2.0 and record["measured"]["error"] == report.error and not record["forced"]
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
