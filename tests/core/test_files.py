import errno
import hashlib
import math
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from diffalign.core import (
    DiffalignError,
    atomic_path,
    read_json,
    read_jsonl,
    read_text,
    remove_stale,
    safe_name,
    sha256_file,
    write_json,
    write_jsonl,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_makes_parents_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "a" / "b" / "image.png"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".png" and not target.exists()
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"new" and names(target.parent) == ["image.png"]


def test_atomic_path_keeps_the_old_file_when_the_block_fails(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["x.txt"]


def test_atomic_path_renames_a_whole_folder_and_removes_a_half_one(tmp_path):
    with atomic_path(tmp_path / "weights") as temporary:
        temporary.mkdir()
        (temporary / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "others") as temporary:
        temporary.mkdir()
        (temporary / "one").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["weights"] and names(tmp_path / "weights") == ["one"]


def test_atomic_path_does_not_replace_a_folder(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "old").write_text("old")
    with pytest.raises(DiffalignError, match=r"cannot write .*weights"), atomic_path(tmp_path / "weights") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["weights"] and names(tmp_path / "weights") == ["old"]


def test_atomic_path_complains_when_nothing_was_written(tmp_path):
    with pytest.raises(DiffalignError, match="nothing was written"), atomic_path(tmp_path / "x"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_plainly_and_loses_nothing(tmp_path, error):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with (
        pytest.raises(DiffalignError, match=r"no space left.*x\.txt.*Nothing was lost"),
        atomic_path(target) as temporary,
    ):
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["x.txt"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_really_full_device_is_told_plainly(tmp_path):
    with pytest.raises(DiffalignError, match="no space left"), atomic_path(tmp_path / "x") as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("does not fit")
    assert names(tmp_path) == []


def test_other_system_errors_of_the_block_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        (tmp_path / "input that is absent").read_text()


def test_a_parent_that_is_a_file_is_told_plainly(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffalignError, match="cannot make the folder"), atomic_path(tmp_path / "file" / "x"):
        pass


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    """safetensors makes files that only their owner may read, which would hide a shared cache from everybody else."""
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "weights.safetensors") as temporary:
            save_file({"a": torch.zeros(2)}, temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "weights.safetensors").stat().st_mode) == 0o640


def test_remove_stale_removes_only_temporaries(tmp_path):
    (tmp_path / ".tmp-1234-x").write_text("")
    (tmp_path / ".tmp-5678-y").mkdir()
    (tmp_path / ".tmpK3Yd0f").write_text("")  # what safetensors leaves when it is killed
    (tmp_path / "kept").write_text("")
    assert remove_stale(tmp_path) == 3
    assert names(tmp_path) == ["kept"]


def test_json_round_trip_keeps_order_and_unicode(tmp_path):
    value = {"z": [1, 2.5, None], "a": "Zürich 北京"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(read_json(tmp_path / "x.json")) == ["z", "a"]
    assert "北京" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [math.nan, math.inf, {"x": object()}, "\ud800"])
def test_json_refuses_what_it_cannot_hold(tmp_path, value):
    write_json(tmp_path / "x.json", "old")
    with pytest.raises(DiffalignError, match=r"cannot write .*x\.json"):
        write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == "old"


def test_read_json_names_the_line(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(DiffalignError, match=r"x\.json is not JSON: .* in line 2"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 200_000], ids=["digits", "nesting"])
def test_json_beyond_what_python_reads_is_told_plainly(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    for read in (read_json, lambda path: list(read_jsonl(path))):
        with pytest.raises(DiffalignError, match="is not JSON"):
            read(tmp_path / "x.json")


def test_reading_what_is_absent_or_not_text(tmp_path):
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(DiffalignError, match="not UTF-8"):
        read_text(tmp_path / "latin")
    for read in (read_json, read_text, sha256_file, lambda path: next(read_jsonl(path))):
        with pytest.raises(DiffalignError, match=r"cannot read .*absent: No such file"):
            read(tmp_path / "absent")


def test_jsonl_round_trip_survives_line_separators(tmp_path):
    rows = [{"prompt": "one\ntwo\u2028three\r"}, {"n": 2}]
    assert write_jsonl(tmp_path / "x.jsonl", iter(rows)) == 2
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows


@pytest.mark.parametrize(
    ("line", "complaint"), [(b"{oops}", "not JSON"), (b"[1]", "expected an object"), (b'"\xff"', "JSON")]
)
def test_read_jsonl_names_the_bad_line(tmp_path, line, complaint):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n\n' + line + b"\n")
    rows = read_jsonl(tmp_path / "x.jsonl")
    assert next(rows) == {"a": 1}
    with pytest.raises(DiffalignError, match=f"line 3.*{complaint}"):
        next(rows)


def test_write_text_and_sha256(tmp_path):
    write_text(tmp_path / "x", "é\n")
    assert (tmp_path / "x").read_bytes() == b"\xc3\xa9\n"
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"\xc3\xa9\n").hexdigest()


@pytest.mark.parametrize("text", ["cat", "cat_01.png", "A-b.C"])
def test_safe_name_leaves_a_good_name_alone(text):
    assert safe_name(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../../etc/passwd",
        "/abs",
        "a/b",
        "a\\b",
        "a\nb",
        "a\0b",
        ".hidden",
        "-rf",
        "x" * 5000,
        "北京",
        "\ud800",
    ],
)
def test_safe_name_is_always_a_plain_bounded_file_name(text, tmp_path):
    name = safe_name(text, max_length=40)
    assert 0 < len(name) <= 40 and name.isascii() and name[0] not in ".-" and not set(name) & set("/\\\n\0")
    (tmp_path / name).write_text("")
    assert names(tmp_path) == [name]


def test_safe_name_keeps_different_texts_apart():
    """Altered texts carry a hash, and so does a text that imitates an altered one."""
    texts = ["a/b", "a_b", "a:b", "a\nb", "", ".", "..", "x" * 200, "x" * 201, safe_name("a/b"), safe_name("")]
    assert len({safe_name(text) for text in texts}) == len(texts)


def test_safe_name_needs_room_for_its_hash():
    with pytest.raises(ValueError, match="at least 24"):
        safe_name("a", max_length=10)
