"""The command ``superdiff eval``; light to import, so that the other commands do not wait for it."""

import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    suites: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SUITE]...",
            help="gmm, prompts, logic, halves, limits, shapes, emoji, cost. Default: all that can run.",
        ),
    ] = None,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="A one-minute run that only checks that everything works.")
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="More pictures for the most expensive methods, added to a default run.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the results. Default: runs/evaluation/COMMIT.")
    ] = None,
    split: Annotated[str, typer.Option(help="report, or tune: other captions and seeds, for tuning.")] = "report",
    workers: Annotated[
        int | None, typer.Option(help="Number of processes with one thread each. Default: one per core.", min=1)
    ] = None,
    any_commit: Annotated[
        bool, typer.Option("--any-commit", help="Accept results of other commits in the folder.")
    ] = False,
) -> None:
    """Measure how well pictures compose, and write a report. A stopped run can continue."""
    # Before torch: idle OpenMP teams of several processes on the same cores slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if missing := [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]:
        typer.secho(f"superdiff eval needs {' and '.join(missing)}: pip install 'superdiff-serve[eval]'", err=True)
        raise typer.Exit(2)
    from evaluation.asked import Split
    from evaluation.report import write
    from evaluation.runner import run, sections
    from evaluation.store import OtherCommitError, Scope, Store, default_folder
    from evaluation.suites import NAMES, measurable

    names = suites or list(measurable())
    if unknown := [name for name in names if name not in NAMES]:
        raise typer.BadParameter(f"there is no suite {unknown[0]!r}; there are {', '.join(NAMES)}", param_hint="SUITE")
    if set(names) - set(measurable()):
        detail = "the suite emoji needs pictures that are not here; fetch them: python -m scripts.fetch_emoji"
        raise typer.BadParameter(detail, param_hint="SUITE")
    if split not in list(Split):
        raise typer.BadParameter(f"{split!r} is none of {', '.join(Split)}", param_hint="--split")
    store = Store(out or default_folder(), Scope(Split(split), quick, full and not quick))
    try:
        store.open(any_commit=any_commit)
    except OtherCommitError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    run(names, store, workers=workers or os.cpu_count() or 1)
    for file in write(store.folder, sections(NAMES, store), store.runs(), store.scope):
        typer.echo(str(file))


app = typer.Typer(add_completion=False)
app.command(name="eval")(evaluate)
