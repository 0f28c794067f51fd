"""What a sandbox costs: a program judged in it against a bare `python -I -S`, interleaved.

Besides the process itself that is namespaces, mounts, filter and control group, the program's way
in and its output's way out, and the end of it all. The figure is the median of the differences in
seconds on the clock, pair by pair.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections.abc import Callable

from measure import finish

from limbeck.verifiers import sandbox
from limbeck.verifiers.sandbox import cgroups, interpreter
from limbeck.verifiers.sandbox.limits import Limits

MOST_MS = 25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 pairs instead of 200")
    pairs = 20 if parser.parse_args().quick else 200
    cases = []
    for backend in sandbox.BACKENDS:
        refusal = sandbox.refusal(backend)
        if refusal:
            print(f"{backend}: {refusal}")
            continue
        cases.append(measured(backend, pairs))
    load = round(os.getloadavg()[0], 1)  # of a machine that should do nothing else
    finish("sandbox", cases, ["limbeck"], cgroup=cgroups.home() is not None, load=load)


def measured(backend: str, pairs: int) -> dict[str, object]:
    """The case of one backend; a target is met from it downwards."""
    differences, bare_ms = [], []
    for pair in range(pairs + 2):
        inside, bare = milliseconds(lambda: boxed(backend)), milliseconds(plain)
        if pair >= 2:
            differences.append(inside - bare)
            bare_ms.append(bare)
    low, median, high = statistics.quantiles(differences, n=4)
    print(f"{backend}: {median:.1f} ms over {statistics.median(bare_ms):.1f} ms", flush=True)
    return {
        "case": backend,
        "value": round(median, 2),
        "unit": "ms over bare python",
        "target": MOST_MS,
        "met": median <= MOST_MS,
        "quartiles": [round(low, 2), round(high, 2)],
        "bare_ms": round(statistics.median(bare_ms), 2),
    }


def milliseconds(work: Callable[[], bytes]) -> float:
    begin = time.perf_counter()
    assert work() == b"5\n"
    return 1000 * (time.perf_counter() - begin)


def boxed(backend: str) -> bytes:
    with sandbox.Process(Limits(cpu_s=4), backend, piped=True) as process:
        deadline = time.monotonic() + 30
        process.ask(sandbox.wire.SCRIPT, deadline, source="print(2 + 3)", stdin="")
        return process.output(deadline)[0]


def plain() -> bytes:
    command = [interpreter.executable(), "-I", "-S", "-c", "print(2 + 3)"]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


if __name__ == "__main__":
    main()
