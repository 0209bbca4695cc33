"""The commands put together, and how what goes wrong becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import typer

from impasto.cli.batch import batch
from impasto.cli.cache import app as cache_app
from impasto.cli.console import emit, say
from impasto.cli.demo import demo
from impasto.cli.doctor import doctor
from impasto.cli.engines import app as engines_app
from impasto.cli.evaluate import evaluate
from impasto.cli.export import export, verify
from impasto.cli.grid import grid
from impasto.cli.plan import plan
from impasto.cli.presets import app as presets_app
from impasto.cli.schema import schema
from impasto.cli.stylize import stylize
from impasto.cli.weights import app as weights_app
from impasto.errors import ImpastoError, Interrupted

_EXIT_DEFECT, _EXIT_USAGE, _EXIT_LIMIT, _EXIT_INTERRUPTED = 1, 2, 4, 130

app = typer.Typer(
    name="impasto",
    help="Neural style transfer by optimisation, on exported gradient graphs: no training framework needed.",
    epilog="Exit codes: 0 done, 1 a defect of Impasto's, 2 usage, 3 a backend, package or download is not available, "
    "4 a limit refused the job, 5 an input cannot be read, 6 some pictures of a batch failed, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command()(stylize)
app.command()(batch)
app.command()(grid)
app.command()(plan)
app.command()(evaluate)
app.command()(export)
app.command()(verify)
app.add_typer(presets_app, name="presets")
app.command()(schema)
app.add_typer(weights_app, name="weights")
app.add_typer(engines_app, name="engines")
app.command()(doctor)
app.add_typer(cache_app, name="cache")
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from impasto import __version__

        emit(f"impasto {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _impasto(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        emit(context.get_help())
        raise typer.Exit(_EXIT_USAGE)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line on ``args`` (by default the process's own) and return its exit code; never raises.

    Whatever goes wrong is one line on standard error. With IMPASTO_DEBUG=1 in the environment, what is a defect of
    ours is raised with its traceback instead.
    """
    command = typer.main.get_command(app)
    try:
        with _termination_as_interrupt():
            code = command.main(
                list(sys.argv[1:] if args is None else args), prog_name="impasto", standalone_mode=False
            )
    except Interrupted as error:
        say(str(error))
        return error.exit_code
    except ImpastoError as error:
        return _fail(error.exit_code, str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _EXIT_INTERRUPTED
    except MemoryError:
        return _fail(_EXIT_LIMIT, "out of memory: lower --size, or close other programs")
    except Exception as error:
        usage = _usage_problem(error)
        if usage is not None:
            return _fail(_EXIT_USAGE, usage)
        if os.environ.get("IMPASTO_DEBUG") == "1":
            raise
        return _fail(
            _EXIT_DEFECT,
            f"a defect of Impasto's, please report it ({type(error).__name__}: {error}); "
            "IMPASTO_DEBUG=1 shows where it happened",
        )
    if code == _EXIT_INTERRUPTED:
        say("interrupted")
    return int(code or 0)


def _fail(code: int, problem: str) -> int:
    # Messages from below may have several lines; here, one error is one line.
    say(f"error: {' '.join(problem.split())}")
    return code


def _usage_problem(error: Exception) -> str | None:
    """Return what is wrong with the arguments if that is what the parser says with this exception, else None.

    Its exceptions are Click's in some of typer's versions, and typer's own copy of them in others, so they are told
    by what they can do.
    """
    format_message: Callable[[], str] | None = getattr(error, "format_message", None)
    if format_message is None or getattr(error, "exit_code", None) != _EXIT_USAGE:
        return None
    context = getattr(error, "ctx", None)
    return f"{format_message().rstrip('.')} ({context.command_path if context else 'impasto'} --help)"


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C is taken: files are cleaned up on the way out."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
