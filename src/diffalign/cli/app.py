"""The ``diffalign`` command: its verbs, and how they fail."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffalign import __version__
from diffalign.cli.compare import compare
from diffalign.cli.curate import curate
from diffalign.cli.demo import demo
from diffalign.cli.env import env
from diffalign.cli.generate_candidates import generate_candidates
from diffalign.cli.inspect import inspect
from diffalign.cli.label import label
from diffalign.cli.merge import merge
from diffalign.cli.recipes import recipes
from diffalign.cli.sample import sample
from diffalign.cli.score import score
from diffalign.cli.sweep import sweep
from diffalign.cli.train import train
from diffalign.core import DiffalignError, get_console

__all__ = ["app", "main"]


class _Verbs(TyperGroup):
    """Turns a person's mistake into its message (exit 2) and Ctrl-C into one line (exit 130)."""

    def invoke(self, ctx: Any) -> Any:
        interrupted = False

        def interrupt(number: int, frame: Any) -> None:
            nonlocal interrupted
            interrupted = True
            signal.default_int_handler(number, frame)

        before = signal.signal(signal.SIGINT, interrupt) if _in_main_thread() else None
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:
            # Compiled code may turn an interrupt into an error of its own (torch reading a buffer does).
            if interrupted or isinstance(error, KeyboardInterrupt):
                get_console().print("interrupted; what was finished is kept")
                raise typer.Exit(130) from None
            if not isinstance(error, DiffalignError) or os.environ.get("DIFFALIGN_TRACEBACK") == "1":
                raise
            get_console().print(f"error: {error}", markup=False)
            raise typer.Exit(2) from None
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


app = typer.Typer(
    name="diffalign",
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Align text-to-image diffusion models from preferences.",
    epilog="DIFFALIGN_TRACEBACK=1 shows where an error came from.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffalign {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Align text-to-image diffusion models from preferences."""


app.command("demo")(demo)
app.command("curate")(curate)
app.command("env")(env)
app.command("generate-candidates")(generate_candidates)
app.command("inspect")(inspect)
app.command("label")(label)
app.command("merge")(merge)
app.command("recipes")(recipes)
app.command("train")(train)
app.command("sample")(sample)
app.command("score")(score)
app.command("compare")(compare)
app.command("sweep")(sweep)


def main() -> None:
    """Run the command line with the process's arguments and leave with its exit code."""
    app(prog_name="diffalign")
