"""`python -m limbeck` many times over, in forks of a process that has imported it already.

A job is a line of JSON on stdin: [folder, arguments]. The answer is one, too: [code, stdout,
stderr]. What a fresh process does beside this is to import; some tests start one for that.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import limbeck.api
import limbeck.cli  # noqa: F401


def serve() -> None:
    for line in sys.stdin:
        folder, arguments = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                os._exit(run(folder, arguments))
            _, status = os.waitpid(child, 0)
            said = []
            for stream in (out, err):
                stream.seek(0)
                said.append(stream.read().decode())
        print(json.dumps([os.waitstatus_to_exitcode(status), *said]), flush=True)


def run(folder: str, arguments: list[str]) -> int:
    """The exit code, once everything is written."""
    os.chdir(folder)
    sys.path[0] = folder
    sys.argv[1:] = arguments
    try:
        runpy.run_module("limbeck", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
