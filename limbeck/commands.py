"""The commands: run, plan, evaluate, show, report, serve, export, audit, doctor, publish, schema.

What is heavy is imported where it is needed, so that `limbeck --help` answers at once.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from limbeck import processes
from limbeck.errors import UserError, UserErrors

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
        command=typed(),
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
    machine: Annotated[
        str | None, typer.Option(help="8xH100, or local; else the recipe's, or this one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe, and tell what running it would do and take."""
    from limbeck import api
    from limbeck.estimates import text

    found = api.estimate(recipe, _settings(overrides), run=run_dir, size=size, machine=machine)
    typer.echo(json.dumps(found.summary()) if as_json else text.table(found))
    if refusals := found.refusals():
        raise UserErrors(refusals)


@app.command()
def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, GGUF files, hub names, addresses of servers: to compare."),
    ] = None,
    on: Annotated[
        str, typer.Option(help="Benchmarks: math500,aime24; a file of one's own: math500=FILE.")
    ] = "",
    samples: Annotated[
        int | None, typer.Option(min=0, help="Per problem, instead of the protocol's; 0: greedy.")
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Only so many problems of each.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; else 32,768.")
    ] = None,
    prompting: Annotated[
        str, typer.Option(help="Ways to ask, each a row: direct,zero_shot_cot,few_shot_cot.")
    ] = "",
    examples: Annotated[
        str | None, typer.Option(help="A data set of worked examples, for few_shot_cot.")
    ] = None,
    engine: Annotated[
        Literal["local", "vllm", "openai", "llama_cpp"] | None,
        typer.Option(help="Who writes the answers."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A server's name for the model, if it has several.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--from", help="Repeat this evaluation/manifest.json, and compare."),
    ] = None,
    run_dir: RunDir = None,
    redo: Annotated[list[str], typer.Option(help="Make this stage anew.")] = [],
    keep: Annotated[list[str], typer.Option(help="Use a stale stage as it is.")] = [],
    quiet: Quiet = False,
) -> None:
    """Evaluate models by the benchmarks' protocols; the same command again goes on."""
    from limbeck import api, progress
    from limbeck.evaluation import again, shortcut

    progress.quiet = quiet
    if manifest:
        others = (models, on, samples, num, max_tokens, prompting, examples, engine, model)
        if any(each not in (None, "") for each in others) or redo or keep:
            what, way_out = "says all of it: model, problems and how", "leave out all but --run"
            raise UserError(f"--from {manifest}", what, way_out)
        repeated = again.again(manifest, run_dir, typed())
        typer.echo("\n".join(map(progress.visible, again.words(repeated))))
        raise typer.Exit(1 if repeated.changes else 0)
    names, ways = ([word for word in words.split(",") if word] for words in (on, prompting))
    finished = api.evaluate(
        models or [],
        names,
        shortcut.Wishes(samples, num, max_tokens, tuple(ways), examples),
        engine=engine,
        served=model,
        run=run_dir,
        redo=redo,
        keep=keep,
        command=typed(),
    )
    if not processes.leads():
        return
    told = shortcut.text(finished, [*map(shortcut.Benchmark.of, names)], ways)
    typer.echo(f"\n{progress.visible(told)}\n")
    typer.echo(f"report: {finished.path / 'report.html'}")
    typer.echo(f"manifest, for --from: {shortcut.manifest(finished)}")


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
    model: Annotated[
        str,
        typer.Argument(help="A folder, runs/demo/sft say, a GGUF file, or a name on the hub."),
    ],
    host: Annotated[
        str, typer.Option(help="Where to listen; any but this machine's own demands a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    key_variable: Annotated[
        str, typer.Option(help="The environment variable with the key that clients must send.")
    ] = "LIMBECK_SERVE_KEY",
    rows: Annotated[int, typer.Option(min=1, help="Texts that are written at once.")] = 64,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a text of a GGUF file; else all it has learned."),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait besides.")] = 256,
    timeout_s: Annotated[float, typer.Option(min=1, help="What a request may take.")] = 600.0,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What the model computes in.")
    ] = "float32",
) -> None:
    """Serve a model by OpenAI's HTTP interface."""
    from limbeck import memory, serve
    from limbeck.engines.drafts import Draft
    from limbeck.evaluation.subjects import gguf_in, model_in

    key = serve.check(host, key_variable)
    bound = serve.bind(host, port)  # before the model is loaded, which may take a while
    limits = serve.Limits(num_rows=rows, num_waiting=queue, time_s=timeout_s)
    if file := gguf_in(model):
        from limbeck.engines import llama_cpp
        from limbeck.engines.llama_cpp_server.serving import Served, watched

        llama = llama_cpp.connect(model=str(file), context=context, batch_rows=rows)
        with watched(llama.server):
            serve.run(Served(llama), Draft, bound, key, limits, tells_logprobs=False)
        return
    if context is not None:
        raise UserError("--context", "is of GGUF files alone", "leave it out")
    folder = model_in(model, "give a folder, or owner/name on the hub")
    from limbeck.engines import local
    from limbeck.engines.local_engine import LocalEngine

    memory.keep_freed()
    engine = local.connect(model=str(folder or model), dtype=dtype, batch_rows=rows)
    if not isinstance(engine, LocalEngine):
        what = "is of a kind whose texts cannot be written side by side here"
        raise UserError(f"model {model}", what, "serve it by another program, vLLM say")
    serve.run(engine, Draft, bound, key, limits)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="A folder, runs/demo/sft say, or a model's name on the hub.")
    ],
    to: Annotated[
        Literal["hf", "gguf"],
        typer.Option(help="For transformers and vLLM, or for llama.cpp and Ollama."),
    ],
    quant: Annotated[
        str, typer.Option(help="Types of GGUF files: f32,f16,bf16,q8_0,q5_1,q5_0,q4_1,q4_0.")
    ] = "",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of a Hugging Face folder's numbers; else as they are."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The new folder; beside the model's run by default.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a model for others to run, with its card; a GGUF file is proved equal before."""
    from limbeck import exporting, progress
    from limbeck.evaluation.subjects import model_in
    from limbeck.export import gguf

    progress.quiet = quiet
    if quant and to == "hf":
        raise UserError("--quant", "is of GGUF files", "leave it out, or say --to gguf")
    if dtype and to == "gguf":
        raise UserError("--dtype", "is of Hugging Face folders", "say --quant f16, for instance")
    kinds = [kind.strip().lower() for kind in quant.split(",")] if quant else []
    for kind in kinds:
        if kind not in gguf.TYPES and "_k" not in kind:  # which the stage tells the way to
            way_out = f"take of {', '.join(gguf.TYPES)}"
            raise UserError("--quant", f"knows no {kind!r}", way_out)
    folder = model_in(model, "give a folder, or owner/name on the hub")
    settings: dict[str, Any] = {"model": str(folder or model), "to": to, "dtype": dtype}
    if kinds:
        settings["quant"] = kinds
    place = out or exporting.beside(folder, model, f"{to}-{dtype}" if dtype else to)
    for path in exporting.export(settings, place, typed()):
        typer.echo(path)


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
def doctor(
    subject: Annotated[
        str, typer.Argument(help="A recipe, a model, by folder or Hub name; else this machine.")
    ] = "",
    overrides: Overrides = None,
    run_dir: RunDir = None,
    size: Size = "",
    as_json: AsJson = False,
) -> None:
    """Look for what would make a run worthless, before it runs, and say the way out."""
    from limbeck.doctor import examine
    from limbeck.progress import visible

    findings = examine(subject, _settings(overrides), run=run_dir, size=size)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    for finding in findings if not as_json else ():
        mark = {True: "ok", False: "NO", None: "??"}[finding.ok]
        way_out = f"; {finding.way_out}" if finding.way_out else ""
        typer.echo(visible(f"{mark}  {finding.name:<20} {finding.told}{way_out}"))
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="runs/demo/curate/dataset, or an export")],
    to: Annotated[str, typer.Option(help="Where on the hub: organisation/name")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see.")] = False,
) -> None:
    """Push a finished data set or exported model to the Hugging Face hub, with its card."""
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


def typed() -> str:
    """The command as it was typed, to go on with."""
    words = ["limbeck", *sys.argv[1:]]
    if processes.num_started() > 1:
        words = ["torchrun", "--nproc-per-node", str(processes.num_here()), "-m", "--", *words]
    return shlex.join(words)
