"""The command ``superdiff``: every command is a file of :mod:`service.commands`."""

import typer

from evaluation.cli import evaluate
from service.commands.calibrate import calibrate
from service.commands.compose import compose
from service.commands.density import density
from service.commands.doctor import doctor
from service.commands.jobs import jobs_app
from service.commands.keys import keys_app
from service.commands.models import models_app
from service.commands.remake import remake
from service.commands.serve import serve
from service.commands.worker import worker

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Compose pretrained diffusion models by superposition.",
    epilog="Exit codes: 0 done, 1 problems, 2 wrong input, 3 no service, 4 refused or failed, 130 interrupted.",
)
for command in (serve, worker, compose, density, remake, calibrate, doctor):
    app.command()(command)
app.add_typer(models_app, name="models")
app.add_typer(jobs_app, name="jobs")
app.add_typer(keys_app, name="keys")
app.command(name="eval")(evaluate)


if __name__ == "__main__":
    app()
