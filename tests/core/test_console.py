import io

import pytest
from rich.console import Console

from diffalign.core import console, get_console, print_table, progress, warn


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still unless the test moves it."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def run_progress(clock, seconds, **options):
    for _ in progress(range(len(seconds)), **options):
        clock.now += seconds[_]


def test_nothing_is_shown_in_the_first_two_seconds(clock, capsys):
    run_progress(clock, [0.1] * 19)
    assert capsys.readouterr() == ("", "")


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock, capsys):
    run_progress(clock, [1.0] * 25, description="encode", unit="images")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "encode: 2/25 images in 0:02, 1.0/s, 0:23 left",
        "encode: 12/25 images in 0:12, 1.0/s, 0:13 left",
        "encode: 22/25 images in 0:22, 1.0/s, 0:03 left",
        "encode: 25/25 images in 0:25, 1.0/s, 0:00 left",
    ]


def test_slow_items_show_seconds_each(clock, capsys):
    run_progress(clock, [4.0, 4.0], description="[x]", unit="steps")
    assert capsys.readouterr().err.splitlines()[0] == "[x]: 1/2 steps in 0:04, 4.0 s each, 0:04 left"


def test_a_stream_has_no_time_left(clock, capsys):
    for _ in progress(iter([1, 2]), description="read"):
        clock.now += 3
    assert capsys.readouterr().err.splitlines()[0] == "read: 1 items in 0:03, 3.0 s each"


def test_items_pass_unchanged_and_a_break_still_closes(clock, capsys):
    seen = []
    passing = progress(iter("abc"), total=3, description="pass")
    for item in passing:
        seen.append(item)
        clock.now += 1.5
        if item == "b":
            break
    passing.close()
    assert seen == ["a", "b"]
    assert capsys.readouterr().err == "pass: 1/3 items in 0:03, 3.0 s each, 0:06 left\n"


def test_a_terminal_gets_a_bar_once_it_takes_long(clock, monkeypatch):
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "get_console", lambda: screen)
    run_progress(clock, [0.1] * 5, description="quick")
    assert screen.file.getvalue() == ""
    run_progress(clock, [1.0] * 5, description="encode", unit="images")
    assert "encode" in screen.file.getvalue() and "5/5 images, 1.0/s" in screen.file.getvalue()


def test_messages_go_to_stderr_whole_and_unmarked(capsys):
    warn("a [bold]path[/bold]/" + "x" * 200)
    get_console().print("y" * 200)
    out, err = capsys.readouterr()
    assert out == "" and err == f"warning: a [bold]path[/bold]/{'x' * 200}\n{'y' * 200}\n"


def test_a_table_off_the_terminal_is_plain_aligned_text_on_stdout(capsys):
    print_table(["name", "value"], [["a", 1], ["long [name]", "v" * 150]], title="things")
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.rstrip() for line in out.splitlines()] == [
        "things",
        "name         value",
        "a            1",
        "long [name]  " + "v" * 150,
    ]
