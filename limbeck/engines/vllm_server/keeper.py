"""A command that runs for as long as its owner lives, and not a moment longer.

Also the script that sees to it. It imports nothing of Limbeck, runs the command in a process group
of its own, and ends the whole group once its standard input closes: because the owner said so, or
because the owner died, however suddenly.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GRACE_S = 20.0  # between the polite signal and the other one


class KeptProcess:
    """The command, started; what it says goes to the file `log`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        handle, path = tempfile.mkstemp(prefix="limbeck-server-", suffix=".log")
        self.log = Path(path)
        with open(handle, "wb") as log:
            self.keeper = subprocess.Popen(
                [sys.executable, "-I", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is the owner's to handle
            )

    def is_alive(self) -> bool:
        """Whether the command still runs."""
        return self.keeper.poll() is None

    def last_words(self, num_lines: int = 3) -> str:
        """The end of what it said, in one line."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [" ".join(line.split()) for line in lines if line.strip()]
        return " | ".join(said[-num_lines:])[-500:] or "nothing"

    def stop(self) -> None:
        """Ends the command and all that it started; returns when they are gone."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()
        self.keeper.wait()

    def forget(self) -> None:
        """`stop`, and away with the log, which says something only if it ended by itself."""
        ended_by_itself = not self.is_alive()
        self.stop()
        if not ended_by_itself:
            self.log.unlink(missing_ok=True)


def main(command: Sequence[str]) -> int:
    """Runs the command to its end, which comes at the latest when standard input closes."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def kill(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def end(*_: Any) -> None:
        kill(signal.SIGTERM)
        late = threading.Timer(GRACE_S, kill, [signal.SIGKILL])
        late.daemon = True
        late.start()

    def end_with_owner() -> None:
        while os.read(sys.stdin.fileno(), 4096):  # sys.stdin itself would be locked at our exit
            pass
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=end_with_owner, daemon=True).start()
    code = child.wait()
    kill(signal.SIGKILL)  # what it started and left behind
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
