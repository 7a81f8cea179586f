"""Whoever does the shards, the bytes are the same."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_curate import config, results

from diffalign.core import DiffalignError, Shard, plan_shards
from diffalign.curate import curate, open_engine
from diffalign.curate.engine import _gpus_each, default_workers
from fresh import server


def name_of(shard: Shard) -> Path:
    return Path(f"shard {shard.index} by {os.getpid()}")


def other_name_of(shard: Shard) -> Path:
    return Path(f"other {shard.index}")


def fails(shard: Shard) -> Path:
    raise DiffalignError(f"shard {shard.index} cannot be made")


def dies(shard: Shard) -> Path:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("engines") / "whole"
    curate(config(audit=True), folder)
    return results(folder)


def test_one_local_worker_is_this_process() -> None:
    with open_engine() as mapper:
        assert list(mapper(name_of, plan_shards(2, 1))) == [Path(f"shard {index} by {os.getpid()}") for index in (0, 1)]


def test_two_processes_do_one_function_after_another_and_tell_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    forks = server()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forks)  # below they are spawned
    with open_engine("local", 2) as mapper:
        assert list(mapper(name_of, [])) == []
        first = sorted(str(path) for path in mapper(name_of, plan_shards(5, 1)))
        assert [text.split(" by ")[0] for text in first] == [f"shard {index}" for index in range(5)]
        assert str(os.getpid()) not in {text.split(" by ")[1] for text in first}
        assert sorted(map(str, mapper(other_name_of, plan_shards(2, 1)))) == ["other 0", "other 1"]
        with pytest.raises(DiffalignError, match="shard 0 cannot be made"):
            list(mapper(fails, plan_shards(1, 1)))
        with pytest.raises(AttributeError, match="local object"):  # here, where it is seen
            list(mapper(lambda shard: Path(), plan_shards(1, 1)))
        with pytest.raises(DiffalignError, match=r"a worker died.*the same command goes on"):
            list(mapper(dies, plan_shards(1, 1)))


def test_two_processes_give_the_same_bytes(whole: dict[str, bytes], tmp_path: Path) -> None:
    curate(config(audit=True), tmp_path / "run", workers=2)
    assert results(tmp_path / "run") == whole


@pytest.fixture
def ray() -> Iterator[Any]:
    """A cluster of this machine with two cores, which the run joins."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    import ray

    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_two_actors_give_the_same_bytes(whole: dict[str, bytes], tmp_path: Path, ray: Any) -> None:
    def fails_there(shard: Shard) -> Path:
        raise DiffalignError(f"shard {shard.index} cannot be made")

    assert default_workers("ray") == 2
    curate(config(audit=True), tmp_path / "run", engine="ray", workers=2)
    assert results(tmp_path / "run") == whole
    assert ray.is_initialized(), "somebody else's cluster stays"
    with open_engine("ray", 1) as mapper, pytest.raises(DiffalignError, match=r"^shard 0 cannot be made$"):
        list(mapper(fails_there, plan_shards(1, 1)))


def test_more_actors_than_a_cluster_has_room_for_are_refused() -> None:
    with pytest.raises(DiffalignError, match="expected 6 CPU cores for 3 workers of 2 threads, the Ray cluster has 4"):
        _gpus_each({"CPU": 4.0}, 3, 2)


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(0, 3, 0.0), (2, 2, 1.0), (2, 3, 0.5), (4, 1, 1.0), (1, 3, 1 / 3)]
)
def test_every_actor_finds_room_on_a_gpu(gpus: int, workers: int, share: float) -> None:
    assert _gpus_each({"CPU": 8.0, "GPU": float(gpus)}, workers, 2) == share
    assert not gpus or workers <= gpus * int(1 / share)


def test_too_few_workers_are_refused() -> None:
    with pytest.raises(DiffalignError, match="at least 1, got 0 and 1"), open_engine("local", 0):
        pass
    assert default_workers("local") >= 1
