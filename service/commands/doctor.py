"""``superdiff doctor``: what may keep the service from working here."""

import os
from typing import Annotated

import typer

from service.commands.common import (
    CatalogOption,
    DeviceOption,
    Exit,
    JsonOption,
    catalog_path,
    print_json,
    quiet,
    read_settings,
    told,
)


def doctor(
    catalog: CatalogOption = None,
    device: DeviceOption = None,
    *,
    no_load: Annotated[bool, typer.Option("--no-load", help="Only look for the models' files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine as the service would find it, and say what is wrong; exit with 1 where something is."""
    with told():
        settings = read_settings(**({} if device is None else {"device": device}))
        settings = settings.model_copy(update={"catalog": catalog_path(catalog, settings)})
        quiet()
        from service.diagnosis import Subject, diagnose

        found = diagnose(Subject(settings, os.environ, load=not no_load))
    problems = [finding for findings in found.values() for finding in findings if finding.problem]
    if as_json:
        told_of = {
            name: [{"about": each.about, "found": each.told, "problem": each.problem} for each in findings]
            for name, findings in found.items()
        }
        print_json({"problems": len(problems), "checks": told_of})
    else:
        for name, findings in found.items():
            if findings:
                typer.secho(name, bold=True)
            for each in findings:
                typer.echo(f"  {'✗' if each.problem else '✓'} {each.about}: {each.told}")
                if each.problem:
                    typer.secho(f"    {each.problem}", fg="red")
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        typer.echo(f"\n{count if problems else 'No problems'}.")
    if problems:
        raise typer.Exit(Exit.PROBLEMS)
