import json
import os
import signal
import subprocess
import sys

import pytest
import typer

import diffalign
from diffalign.cli import app, main
from diffalign.core import DiffalignError


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line as a shell would: arguments -> (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["diffalign", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


@pytest.fixture
def failing_verb():
    """A verb that raises what the test puts into the list, or what a function in it returns."""
    raises = []

    @app.command("fail")
    def fail() -> None:
        raise raises[0]() if callable(raises[0]) else raises[0]

    yield raises
    app.registered_commands.pop()


def test_version(run):
    assert run("--version") == (0, f"diffalign {diffalign.__version__}\n", "")


def test_help_lists_the_verbs(run):
    code, out, _ = run("--help")
    assert code == 0 and "env" in out


def test_an_unknown_verb_names_the_nearest(run):
    code, _, err = run("evn")
    assert code == 2 and "env" in err


def test_env_shows_a_table(run):
    code, out, _ = run("env")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["versions", "diffalign", diffalign.__version__] in lines and ["devices", "cpu", "always"] in lines


def test_env_as_json(run):
    code, out, _ = run("env", "--json")
    facts = json.loads(out)
    assert code == 0 and list(facts) == ["versions", "devices", "processor", "extras"]
    assert facts["versions"]["python"] == sys.version.split()[0] and facts["processor"]["cores"] >= 1
    assert set(facts["extras"]) >= {"dev", "docs"} and facts["processor"]["memory_gib"] > 0


def test_a_mistake_is_a_message_without_a_traceback(run, failing_verb):
    failing_verb.append(DiffalignError("expected [a] pair,\ngot none"))
    assert run("fail") == (2, "", "error: expected [a] pair,\ngot none\n")


def test_the_traceback_can_be_asked_for(monkeypatch, failing_verb):
    failing_verb.append(DiffalignError("expected a pair"))
    monkeypatch.setenv("DIFFALIGN_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["diffalign", "fail"])
    with pytest.raises(DiffalignError, match="expected a pair"):
        main()


def test_ctrl_c_is_one_line(run, failing_verb):
    failing_verb.append(KeyboardInterrupt())
    code, out, err = run("fail")
    assert code == 130 and out == "" and len(err.splitlines()) == 1


def test_ctrl_c_that_compiled_code_turned_into_another_error_is_one_line(monkeypatch, run, failing_verb):
    def compiled_code():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            return ValueError("could not determine the shape")

    handler = signal.getsignal(signal.SIGINT)
    failing_verb.append(compiled_code)
    code, _, err = run("fail")
    assert code == 130 and len(err.splitlines()) == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_bug_keeps_its_traceback(monkeypatch, failing_verb):
    failing_verb.append(ZeroDivisionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["diffalign", "fail"])
    with pytest.raises(ZeroDivisionError):
        main()


def test_a_verb_may_choose_its_exit_code(run, failing_verb):
    failing_verb.append(typer.Exit(3))
    assert run("fail")[0] == 3


def test_the_command_line_and_core_load_nothing_heavy():
    heavy = "{'torch', 'transformers', 'diffusers', 'peft', 'datasets', 'pyarrow', 'pandas', 'scipy', 'numpy'}"
    code = f"import sys, diffalign.cli, diffalign.core; print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout == "[]\n"
