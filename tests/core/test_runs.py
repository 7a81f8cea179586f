import json
import subprocess

import pytest

from diffalign.core import Config, DiffalignError, RunFolder, load_config, runs, setting, versions


class Train(Config):
    lr: float = setting(1e-4, "learning rate")
    steps: int = setting(100, "number of steps")


class Run(Config):
    train: Train = setting(Train(), "the loop")
    name: str = setting("a", "its name")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_run_writes_its_settings_and_versions(tmp_path):
    config = Run(name="b")
    with RunFolder.open(tmp_path / "run", config, kind="train") as run:
        assert run.path == tmp_path / "run" and run.config == config and not run.resumed
    assert names(run.path) == [".lock", "config.yaml", "run.json", "versions.json"]
    assert load_config(Run, run.path / "config.yaml") == config
    assert json.loads((run.path / "run.json").read_text())["kind"] == "train"
    (entry,) = json.loads((run.path / "versions.json").read_text())
    assert entry["versions"] == versions()


def test_the_same_run_goes_on(tmp_path):
    with RunFolder.open(tmp_path, Run(), kind="train"):
        (tmp_path / "result").write_text("x")
        (tmp_path / ".tmp-1-half").write_text("left by a killed writer")
    with RunFolder.open(tmp_path, Run(), kind="train") as run:
        assert run.resumed and (tmp_path / "result").exists() and not (tmp_path / ".tmp-1-half").exists()
    assert len(json.loads((tmp_path / "versions.json").read_text())) == 1


def test_other_settings_are_refused_with_both_values(tmp_path):
    with RunFolder.open(tmp_path, Run(), kind="train"):
        pass
    before = (tmp_path / "config.yaml").read_text()
    changed = Run(train=Train(lr=2e-4))
    with (
        pytest.raises(DiffalignError, match=r"other settings:\n  train\.lr: 0\.0001 there, 0\.0002 now\nUse those"),
        RunFolder.open(tmp_path, changed, kind="train"),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text() == before


def test_another_kind_is_refused(tmp_path):
    with RunFolder.open(tmp_path, Run(), kind="train"):
        pass
    with (
        pytest.raises(DiffalignError, match="of kind 'train', not 'curate'"),
        RunFolder.open(tmp_path, Run(), kind="curate"),
    ):
        pass


def test_a_setting_that_is_gone_or_new_is_named(tmp_path):
    with RunFolder.open(tmp_path, Run(), kind="train"):
        pass
    with (
        pytest.raises(DiffalignError, match=r"lr: '\(absent\)' there"),
        RunFolder.open(tmp_path, Train(), kind="train"),
    ):
        pass


def test_a_folder_with_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DiffalignError, match=r"something else than a run \(thesis\.tex\)"):
        RunFolder.open(tmp_path, Run(), kind="train").__enter__()
    assert names(tmp_path) == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffalignError, match="is a file"):
        RunFolder.open(tmp_path / "file", Run(), kind="train").__enter__()


def test_a_run_killed_while_it_began_can_begin_again(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".tmp-1-run.json").write_text("half")
    with RunFolder.open(tmp_path, Run(), kind="train") as run:
        assert not run.resumed
    (tmp_path / "config.yaml").unlink()  # killed between run.json and config.yaml
    with RunFolder.open(tmp_path, Run(name="c"), kind="train") as run:
        assert not run.resumed
    assert load_config(Run, tmp_path / "config.yaml").name == "c"


def test_one_process_at_a_time(tmp_path):
    with (
        RunFolder.open(tmp_path, Run(), kind="train"),
        pytest.raises(DiffalignError, match="in use by process"),
        RunFolder.open(tmp_path, Run(), kind="train"),
    ):
        pass


def test_going_on_with_other_versions_warns_and_is_recorded(tmp_path, monkeypatch, capsys):
    with RunFolder.open(tmp_path, Run(), kind="train"):
        pass
    monkeypatch.setattr(runs, "versions", lambda: versions() | {"torch": "99.0"})
    with RunFolder.open(tmp_path, Run(), kind="train"):
        pass
    assert "torch" in (warning := capsys.readouterr().err) and "-> 99.0" in warning
    entries = json.loads((tmp_path / "versions.json").read_text())
    assert [entry["versions"]["torch"] for entry in entries] == [versions()["torch"], "99.0"]


def test_versions_name_what_is_absent(monkeypatch):
    monkeypatch.setattr(runs, "_PACKAGES", ("numpy", "package-that-is-absent"))
    found = versions()
    assert found["numpy"] and found["package-that-is-absent"] == ""


def test_git_revision_is_that_of_the_checkout_that_tracks_the_package(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert runs._git_revision(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "runs.py").write_text("1")
    (tmp_path / "other").write_text("1")
    git("add", "other")
    git("commit", "-qm", "one")
    assert runs._git_revision(tmp_path) == ""  # inside a repository that does not track the package
    git("add", "runs.py")
    git("commit", "-qm", "two")
    assert runs._git_revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "runs.py").write_text("2")
    assert runs._git_revision(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
