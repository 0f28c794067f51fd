"""The command line: `commands`, and what a shell hears of how they end."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from limbeck import processes, secrets
from limbeck.commands import app, typed
from limbeck.errors import UserError, UserErrors, disk_is_full, is_closed


class _Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not a KeyboardInterrupt, which typer would take for itself."""

    def __init__(self, number: int):
        self.exit_code = 128 + number


def _stop(number: int, _: Any) -> NoReturn:
    """The first signal unwinds the work; a second one leaves at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise _Stopped(number)


def main() -> None:
    """Runs a command; mistakes of the user become one line each and exit code 2."""
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    sys.path.append("")  # a plug-in of one's own may lie in the working folder
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another alphabet
    sys.exit(_exit_code(lambda: app(standalone_mode=False)))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        return command() or 0
    except UserErrors as several:
        for error in several.errors:
            _say(str(error))
        return 2
    except UserError as error:
        _say(str(error))
        return 2
    except _Stopped as stopped:
        _say(f"stopped; what was finished is kept. Go on with: {typed()}")
        return stopped.exit_code
    except typer.Exit as error:
        return error.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # click's own words for a wrong command line
            if said := error.format_message().rstrip("."):
                _say(f"{said}; see limbeck --help")
            return 2
        if disk_is_full(error):
            what = "the disk is full; nothing that was finished is lost"
            _say(f"{what}. Free space, then go on with: {typed()}")
            return 1
        if processes.is_lost(error):
            what = "another process of this run has ended; what was finished is kept"
            _say(f"{what}. Go on with: {typed()}")
            return 1
        if isinstance(error, BrokenPipeError):  # whoever read our words has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1
        if is_closed(error):
            _say(f"{error}; choose a folder that you may write to")
            return 2
        if processes.speaks():
            typer.echo(secrets.hidden(traceback.format_exc()), err=True)
        return 1


def _say(mistake: str) -> None:
    """One line, whatever it quotes; of several processes, one speaks."""
    from limbeck.progress import visible

    if not processes.speaks():
        return
    typer.echo(f"limbeck: {visible(secrets.hidden(' '.join(mistake.split())))}", err=True)
