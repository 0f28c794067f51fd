"""The command line: run, plan, show, report, audit, doctor, publish, serve, schema."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from limbeck import processes, secrets
from limbeck.errors import UserError, UserErrors, disk_is_full, is_closed

app = typer.Typer(
    name="limbeck",
    help="Turn a strong reasoning teacher into a small, deployable student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipePath = Annotated[str, typer.Argument(help="A recipe file, recipes/quickstart.yaml say.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings that override it: distilled.lr=2e-3")
]
RunDir = Annotated[Path | None, typer.Option("--run", help="The run folder; runs/NAME by default.")]
Size = Annotated[str, typer.Option(help="A named size of the recipe, `ci` for instance.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only results and mistakes.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder, runs/quickstart say.")]


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    size: Size = "",
    redo: Annotated[list[str], typer.Option(help="Make this stage anew.")] = [],
    keep: Annotated[list[str], typer.Option(help="Use a stale stage as it is.")] = [],
    quiet: Quiet = False,
) -> None:
    """Run a recipe; finished stages are skipped, interrupted ones go on."""
    from limbeck import api, progress

    progress.quiet = quiet
    finished = api.run(
        recipe,
        _settings(overrides),
        run=run_dir,
        size=size,
        redo=redo,
        keep=keep,
        command=_command(),
    )
    if not processes.leads():
        return
    if text := finished.results_text():
        typer.echo(f"\n{progress.visible(text)}\n")
    typer.echo(f"report: {finished.path / 'report.html'}")


@app.command()
def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    size: Size = "",
    as_json: AsJson = False,
) -> None:
    """Check a recipe, and tell what running it would do and take."""
    from limbeck import api
    from limbeck.estimates import text

    found = api.estimate(recipe, _settings(overrides), run=run_dir, size=size)
    typer.echo(json.dumps(found.summary()) if as_json else text.table(found))


@app.command()
def show(
    run_dir: RunFolder,
    id: Annotated[str | None, typer.Argument(help="A trace's id, or its beginning.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a run's stages, results and cost, or one trace's whole story."""
    from limbeck.runs import Run

    found = Run(run_dir)
    if as_json:
        told = found.story(id) if id else found.summary()
        typer.echo(json.dumps(told))
    else:
        typer.echo(found.story_text(id) if id else found.text())


@app.command()
def report(run_dir: RunFolder) -> None:
    """Write the run's report, one HTML file, and print its path."""
    from limbeck.runs import Run

    typer.echo(Run(run_dir).write_report())


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="A model's folder, or its name on the hub.")],
    host: Annotated[
        str, typer.Option(help="Where to listen; any but this machine's own demands a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_variable: Annotated[
        str, typer.Option(help="The environment variable with the key that clients must send.")
    ] = "LIMBECK_SERVE_KEY",
    rows: Annotated[int, typer.Option(min=1, help="Texts that are written at once.")] = 64,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait besides.")] = 256,
    timeout_s: Annotated[float, typer.Option(min=1, help="What a request may take.")] = 600.0,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What the model computes in.")
    ] = "float32",
) -> None:
    """Serve a model by OpenAI's HTTP interface."""
    from limbeck import memory, serve

    key = serve.check(host, key_variable)
    bound = serve.bind(host, port)  # before the model is loaded, which may take a while
    from limbeck.engines import local
    from limbeck.engines.local_engine import LocalEngine
    from limbeck.engines.pool import Draft

    memory.keep_freed()
    engine = local.connect(model=model, dtype=dtype, batch_rows=rows)
    if not isinstance(engine, LocalEngine):
        what = "is of a kind whose texts cannot be written side by side here"
        raise UserError(f"model {model}", what, "serve it by another program, vLLM say")
    limits = serve.Limits(num_rows=rows, num_waiting=queue, time_s=timeout_s)
    serve.run(engine, Draft, bound, key, limits)


@app.command()
def audit(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder of labelled sets; $LIMBECK_TEST_DATA by default."),
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Only this set.")] = None,
    as_json: AsJson = False,
    misses: Annotated[bool, typer.Option("--list", help="Each miss, one a line.")] = False,
    judge: Annotated[
        str | None,
        typer.Option(help="Measure this engine as a judge of the sets that are named, instead."),
    ] = None,
) -> None:
    """Measure the verifiers on labelled and on hostile answers, beside their peers."""
    from limbeck import audit

    if judge is not None:
        for line in audit.judged(audit.folder(data), judge, sets or ["gsm8k"]):
            typer.echo(line)
        return
    found = audit.run(audit.folder(data), sets=sets)
    if as_json:
        typer.echo(json.dumps(found.rows))
    else:
        typer.echo(found.listing() if misses else found.text())


@app.command()
def doctor() -> None:
    """Try out what this machine can do, and say how to mend what it cannot."""
    from limbeck.doctor import examine

    findings = examine()
    for finding in findings:
        mark, way_out = ("ok", "") if finding.ok else ("NO", f"; {finding.way_out}")
        typer.echo(f"{mark}  {finding.name:<24} {finding.told}{way_out}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A run's data set: runs/demo/curate/dataset")],
    to: Annotated[str, typer.Option(help="Where on the hub: organisation/name")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see.")] = False,
) -> None:
    """Push a finished data set to the Hugging Face hub, its card with it."""
    from limbeck.publish import publish

    typer.echo(publish(folder, to, private=not public))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from limbeck import recipe

    typer.echo(json.dumps(recipe.schema(), indent=1))


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    from limbeck.recipe import parse_overrides

    return parse_overrides(pairs or [])


def _command() -> str:
    words = ["limbeck", *sys.argv[1:]]
    if processes.num_started() > 1:
        words = ["torchrun", "--nproc-per-node", str(processes.num_here()), "-m", "--", *words]
    return shlex.join(words)


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
        _say(f"stopped; what was finished is kept. Go on with: {_command()}")
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
            _say(f"{what}. Free space, then go on with: {_command()}")
            return 1
        if processes.is_lost(error):
            what = "another process of this run has ended; what was finished is kept"
            _say(f"{what}. Go on with: {_command()}")
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
