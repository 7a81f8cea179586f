import multiprocessing

import pytest

from diffalign.core import DiffalignError, Shard, folder_lock, plan_shards, run_shards, shard_name


def write_rows(shard, path):
    path.write_text(f"{shard.start}-{shard.stop}")


@pytest.mark.parametrize(("rows", "size"), [(0, 5), (1, 5), (5, 5), (11, 5), (7, 1)])
def test_a_plan_covers_every_row_once(rows, size):
    plan = plan_shards(rows, size)
    assert [row for shard in plan for row in shard.rows] == list(range(rows))
    assert [(shard.index, shard.count) for shard in plan] == [(index, len(plan)) for index in range(len(plan))]
    assert all(len(shard.rows) == size for shard in plan[:-1])


@pytest.mark.parametrize(("rows", "size"), [(-1, 5), (5, 0)])
def test_a_plan_needs_sensible_numbers(rows, size):
    with pytest.raises(ValueError, match="rows_per_shard >= 1"):
        plan_shards(rows, size)


def test_names_sort_in_order():
    names = [shard_name(shard, ".x") for shard in plan_shards(1200, 1)]
    assert names == sorted(names)


def test_every_shard_is_written_and_listed_in_order(tmp_path):
    paths = run_shards(plan_shards(7, 3), write_rows, tmp_path / "out", suffix=".txt")
    assert [path.name for path in paths] == ["00000-of-00003.txt", "00001-of-00003.txt", "00002-of-00003.txt"]
    assert [path.read_text() for path in paths] == ["0-3", "3-6", "6-7"]


def test_a_rerun_does_only_what_is_missing(tmp_path):
    shards, done, fail = plan_shards(9, 3), [], True

    def work(shard, path):
        path.write_text("half")
        if shard.index == 1 and fail:
            raise RuntimeError("killed")
        done.append(shard.index)
        write_rows(shard, path)

    with pytest.raises(RuntimeError, match="killed"):
        run_shards(shards, work, tmp_path)
    assert done == [0] and not list(tmp_path.glob(".tmp-*"))
    fail = False
    paths = run_shards(shards, work, tmp_path)
    assert done == [0, 1, 2] and [path.read_text() for path in paths] == ["0-3", "3-6", "6-9"]
    run_shards(shards, work, tmp_path)
    assert done == [0, 1, 2]


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".tmp-0123-00000-of-00001").write_text("half")
    run_shards(plan_shards(1, 1), write_rows, tmp_path)
    assert not list(tmp_path.glob(".tmp-*"))


def test_another_plan_or_key_does_not_mix(tmp_path):
    """12 rows by 4 and 9 rows by 3 make equal file names for other rows."""
    run_shards(plan_shards(12, 4), write_rows, tmp_path, key="a")
    with pytest.raises(DiffalignError, match="begun with another division into shards"):
        run_shards(plan_shards(9, 3), write_rows, tmp_path, key="a")
    with pytest.raises(DiffalignError, match="begun with another key"):
        run_shards(plan_shards(12, 4), write_rows, tmp_path, key="b")


def test_the_folder_is_locked_meanwhile(tmp_path):
    with folder_lock(tmp_path), pytest.raises(DiffalignError, match="in use"):
        run_shards(plan_shards(1, 1), write_rows, tmp_path)


def test_a_pool_gives_the_same_files(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        paths = run_shards(plan_shards(7, 2), write_rows, tmp_path, mapper=pool.imap_unordered)
    assert [path.read_text() for path in paths] == ["0-2", "2-4", "4-6", "6-7"]


def test_work_may_write_a_folder(tmp_path):
    def work(shard, path):
        path.mkdir()
        (path / "rows").write_text(str(shard.start))

    (path,) = run_shards([Shard(0, 1, 5, 6)], work, tmp_path)
    assert (path / "rows").read_text() == "5"


def test_nothing_to_do_is_fine(tmp_path):
    assert run_shards([], write_rows, tmp_path) == []
