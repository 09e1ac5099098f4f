"""What all commands of tools/ share: the parser, how errors are reported, exit codes, and which checkout they use.

Importing this module puts the checkout that it lies in first on the path, so that a command runs the code beside it
whatever is installed in the environment. Only the standard library is imported: tools/doctor.py has to work where the
rest does not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # argparse exits with 2; a shell reports 130 for Ctrl-C


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the command's module docstring, as it is laid out there."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def print_error(message: object) -> None:
    """Prints one error to the standard error stream."""
    print(f'error: {message}', file=sys.stderr, flush=True)


def run_command(
    run: Callable[[argparse.Namespace], int | None],
    args: argparse.Namespace,
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> int:
    """Runs a command; an expected error becomes one line, anything else keeps its traceback.

    Args:
        run: Does the work; returns the exit code, None for 0.
        args: Its parsed arguments.
        errors: Errors that say what is wrong and how to mend it. One with an attribute ``exit_code`` ends the command
            with that, the others with 1.

    Returns:
        The exit code.
    """
    try:
        return run(args) or OK
    except errors as error:
        print_error(error)
        return getattr(error, 'exit_code', FAILED)
    except MemoryError as error:
        print_error(f'not enough memory: {error}' if str(error) else 'not enough memory')
        return FAILED
    except KeyboardInterrupt:
        print_error('interrupted')
        return INTERRUPTED


def _use_this_checkout() -> None:
    """Puts the root first on the path; a package that is not installed is reported in one sentence."""
    sys.path.insert(0, str(ROOT))
    if Path(sys.argv[0]).resolve().parent == Path(__file__).resolve().parent:
        sys.excepthook = _report_missing_package


def _report_missing_package(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not isinstance(error, ModuleNotFoundError):
        sys.__excepthook__(kind, error, traceback)
        return
    print_error(
        f'the package {error.name} is not installed for {sys.executable}: run `make setup` in {ROOT} and start the '
        'command with .venv/bin/python (python tools/doctor.py looks for what else is missing)'
    )


_use_this_checkout()
