"""Many images: none is dropped, none becomes 0, and one bad image does not take the others along."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from reward_helpers import PROMPTS, image, images

from diffalign.core import DiffalignError
from diffalign.rewards import UNVERSIONED, FunctionReward, load_reward, score


def make(function: Callable[[Sequence[Image.Image], Sequence[str]], object]) -> FunctionReward:
    return FunctionReward("mine", function)


def widths(pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
    return [float(one.width) for one in pictures]


def pictures(count: int) -> list[Image.Image]:
    return [image(20 + n, 17, n) for n in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_scores_are_in_order_and_do_not_depend_on_the_batches(batch_size: int) -> None:
    scores = score(make(widths), pictures(10), ["p"] * 10, batch_size=batch_size)
    assert scores.values.tolist() == [20.0 + n for n in range(10)] and scores.values.dtype == torch.float32
    assert scores.statuses == ["ok"] * 10 and scores.counts == {"ok": 10}


def test_it_equals_the_reward_called_at_once(clip_folder: Path) -> None:
    reward = load_reward("clip_score", weights=clip_folder)
    scores = score(reward, images(), [PROMPTS[0], "a " * 40, PROMPTS[2]], batch_size=2)
    assert torch.allclose(scores.values, reward(images(), [PROMPTS[0], "a " * 40, PROMPTS[2]]), atol=1e-5)
    assert scores.num_truncated == 1 and scores.identity == reward.card.identity


def test_paths_and_images_score_alike_and_a_bad_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    one = image(31, 19, "path")
    one.save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    scores = score(
        make(widths), [tmp_path / "good.png", tmp_path / "bad.png", one, str(tmp_path / "no.png")], ["p"] * 4
    )
    assert scores.values[[0, 2]].tolist() == [31, 31] and scores.values[[1, 3]].isnan().all()
    assert scores.statuses[0] == scores.statuses[2] == "ok"
    assert scores.statuses[1].startswith("error: BadImage") and scores.statuses[3].startswith("error: BadImage")
    assert scores.counts == {"ok": 2, "error": 2}


def test_black_images_are_missing_and_never_reach_the_reward(tmp_path: Path) -> None:
    seen: list[int] = []

    def spy(found: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        seen.extend(one.width for one in found)
        return [1.0] * len(found)

    dim = Image.new("RGB", (23, 17), (3, 2, 3))
    night = Image.new("RGB", (24, 17))
    night.putpixel((5, 6), (0, 0, 40))
    dim.save(tmp_path / "dim.jpg", quality=60)
    scores = score(make(spy), [Image.new("L", (21, 17)), dim, night, tmp_path / "dim.jpg"], ["p"] * 4)
    assert scores.statuses == ["black image", "black image", "ok", "black image"] and seen == [24]
    assert scores.values.isnan().tolist() == [True, True, False, True]


def test_one_failure_does_not_lose_its_batch() -> None:
    def picky(found: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        if any(one.width == 23 for one in found):
            raise RuntimeError("out of\n memory")
        return widths(found, prompts)

    scores = score(make(picky), pictures(6), ["p"] * 6, batch_size=6)
    assert scores.statuses == ["ok"] * 3 + ["error: RuntimeError: out of memory"] + ["ok"] * 2
    assert scores.values.isnan().nonzero().tolist() == [[3]]


def test_a_failed_batch_is_let_go_before_its_images_are_tried_alone() -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []

    def hungry(found: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        alive.extend(one() is not None for one in held)
        memory = torch.zeros(len(found))
        held.append(weakref.ref(memory))
        if len(found) > 1:
            raise RuntimeError("out of memory")
        return memory + 1

    assert score(make(hungry), pictures(3), ["p"] * 3).counts == {"ok": 3}
    assert len(held) == 4 and not any(alive)


def test_the_warning_tells_the_first_error(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(found: Sequence[Image.Image], prompts: Sequence[str]) -> float:
        raise RuntimeError(f"no weights for {found[0].width}")

    score(make(broken), pictures(3), ["p"] * 3)
    told = capsys.readouterr().err
    assert "mine: 3 of 3 images have no score (3 error); the first error: RuntimeError: no weights for 20" in told


def test_nothing_is_rounded_to_tf32_while_scoring_and_the_setting_comes_back() -> None:
    seen: list[tuple[str, str]] = []

    def precisions() -> tuple[str, str]:
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore

    def spy(found: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        seen.append(precisions())
        if found[0].width == 20:
            raise RuntimeError
        return [1.0] * len(found)

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        wanted = precisions()
        score(make(spy), pictures(2), ["p"] * 2, batch_size=1)
        assert seen == [("ieee", "ieee")] * 2 and precisions() == wanted == ("tf32", "tf32")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_version_of_a_users_own_function() -> None:
    class Widths:
        def __call__(self, found: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
            return widths(found, prompts)

    unknown = FunctionReward("mine", Widths())
    assert unknown.card.identity == "mine@unknown/own" and unknown.card.weights == UNVERSIONED
    known = Widths()
    known.version = "3"  # type: ignore[attr-defined]
    assert FunctionReward("mine", known).card.identity == "mine@3/own"


def test_nan_infinity_and_wrong_shapes_are_statuses() -> None:
    def odd(found: Sequence[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
        values = {20: 1.0, 21: math.nan, 22: math.inf, 23: 4.0}
        return torch.tensor([values[one.width] for one in found])

    scores = score(make(odd), pictures(4), ["p"] * 4)
    assert scores.statuses == ["ok", "nan", "error: the score is inf", "ok"]
    assert scores.values.isnan().tolist() == [False, True, True, False]
    wrong = score(make(lambda found, prompts: torch.zeros(len(found), 2)), pictures(3), ["p"] * 3)
    assert all("expected scores of shape (1,), got (1, 2)" in status for status in wrong.statuses)
    assert wrong.values.isnan().all()


def test_a_broadcast_scalar_is_not_a_score_for_all() -> None:
    scores = score(make(lambda found, prompts: 0.0), pictures(3), ["p"] * 3)
    assert scores.counts == {"error": 3}


def test_a_prompt_that_cannot_be_judged_is_reported() -> None:
    scores = score(
        load_reward("tiny-judge-subject"), images(), ["a photo of grass", "a photo of Mars", "a photo of grass"]
    )
    assert [status[:5] for status in scores.statuses] == ["ok", "error", "ok"]


def test_images_are_prepared_on_threads_beside_the_network() -> None:
    """The network waits, in its first batch of two, until an image of the second batch is being prepared."""
    ahead, threads = threading.Event(), set()

    class Watched(FunctionReward):
        def prepare(self, one: Image.Image) -> Image.Image:
            threads.add(threading.current_thread())
            if one.width >= 22:
                ahead.set()
            return one

    def network(found: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        if not ahead.wait(10):
            raise TimeoutError("nothing was prepared meanwhile")
        return widths(found, prompts)

    scores = score(Watched("watched", network), pictures(8), ["p"] * 8, batch_size=2)
    assert scores.counts == {"ok": 8} and threading.main_thread() not in threads


def test_nothing_to_score_and_wrong_arguments() -> None:
    empty = score(make(widths), [], [])
    assert empty.values.shape == (0,) and empty.statuses == [] and empty.counts == {}
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        score(make(widths), pictures(2), ["p"])
    with pytest.raises(ValueError, match="batch_size"):
        score(make(widths), pictures(2), ["p"] * 2, batch_size=0)


def test_a_users_own_function_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "def brightness(images, prompts):\n    return [one.convert('L').getpixel((0, 0)) / 255 for one in images]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    reward = load_reward("my_rewards:brightness")
    scores = reward([Image.new("L", (5, 6), 51), Image.new("RGBA", (5, 6), (0, 0, 0, 0))], ["a", "b"])
    assert scores.tolist() == pytest.approx([0.2, 1.0])
    assert reward.card.name == "my_rewards:brightness" and len(reward.card.weights) == 12
    with pytest.raises(DiffalignError, match="takes no weights"):
        load_reward("my_rewards:brightness", weights=tmp_path)


def test_unknown_names_list_the_nearest_and_absent_weights_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for spec in ("pikscore", "sgp:pikscore"):
        with pytest.raises(DiffalignError, match="nearest: pickscore"):
            load_reward(spec)
    with pytest.raises(DiffalignError, match="no folder"):
        load_reward("clip_score", weights=tmp_path / "nowhere" / "at" / "all")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DiffalignError, match="hf download yuvalkirstain/PickScore_v1"):
        load_reward("pickscore")


def test_examples() -> None:
    import doctest
    import importlib
    import pkgutil

    import diffalign.rewards as package

    results = [
        doctest.testmod(importlib.import_module(f"{package.__name__}.{module.name}"))
        for module in pkgutil.iter_modules(package.__path__)
    ]
    assert sum(result.attempted for result in results) >= 12 and sum(result.failed for result in results) == 0
