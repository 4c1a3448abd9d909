import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.catalog import Catalog
from pipelines.composition import And, Not, Or, Prompt
from pipelines.families.folder import CALIBRATION_FILE, read_calibration
from pipelines.params import SamplingParams, Select
from pipelines.sampler import sample
from service.cli import app
from tests.pipelines.families import tiny

RUN = CliRunner()


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    tiny.stable_diffusion(root / "sd")
    path = root / "superdiff.toml"
    path.write_text('[models.sd]\nsource = "sd"\n')
    return path


TEXT = '"a red circle" AND ("a blue star" OR "a green square") NOT "a black shape"'
LEAVES = ("a red circle", "a blue star", "a green square", "a black shape")


def composed(catalog, text, *options):
    result = RUN.invoke(app, ["compose", text, "--catalog", str(catalog), "--steps", "3", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_compose_writes_pictures_and_tells_of_every_leaf(catalog, tmp_path):
    told = composed(catalog, TEXT, "--out", str(tmp_path / "new/one.png"), "--seed", "4")
    with Image.open(tmp_path / "new/one.png") as image:
        assert image.size == (16, 16)
    assert "seed 4" in told
    assert "candidate" not in told
    for leaf in LEAVES:
        assert re.search(rf"^  {leaf}: log-density -?\d+\.\d nats, lift -?\d+\.\d nats$", told, re.MULTILINE)
    composed(catalog, TEXT, "--out", str(tmp_path / "two.webp"), "-n", "2")
    with Image.open(tmp_path / "two-1.webp") as image:
        assert image.format == "WEBP"


def test_compose_draws_what_the_text_says(catalog, tmp_path):
    """The same as the plain loop over the same tree, with the same candidates and particles."""
    out = tmp_path / "x.png"
    told = composed(
        catalog,
        TEXT,
        *("--out", str(out), "--seed", "4", "--guidance", "3"),
        *("--candidates", "3", "--select", "density", "--particles", "2"),
    )
    model = Catalog.read(catalog).get("sd")
    circle, star, square, shape = (Prompt(leaf, "sd") for leaf in LEAVES)
    params = SamplingParams(steps=3, seed=4, guidance_scale=3, candidates=3, select=Select.DENSITY, particles=2)
    samples = sample(And((circle, Or((star, square)), Not(shape))), params, {"sd": model})
    (drawn,) = model.decode(samples.z).permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    assert np.array_equal(np.asarray(Image.open(out)), drawn)
    assert f"candidate {int(samples.candidate) + 1} of 3" in told
    assert f"{int(samples.survivors)} of 2 particles left" in told


def test_what_is_not_known_is_said_so(catalog, tmp_path):
    told = composed(catalog, "a", "--out", str(tmp_path / "x.png"), "--guidance", "1", "--steps", "1")
    assert "a: log-density unknown, lift unknown" in told


@pytest.mark.parametrize(
    ("text", "column", "told"),
    [
        ("a AND (b", 9, """expected ")", got the end of the text"""),
        ("a AND b@nope", 8, "no model named 'nope'"),
        ("a OR (b AND[balanced] c)", 13, "outermost"),
        ("a AND b<lora:ink>", 8, "no LoRA 'ink'"),
        ("a AND b:20000", 9, "less than or equal to 10000"),
    ],
)
def test_a_text_s_mistake_is_shown_with_a_caret_under_its_column(catalog, text, column, told):
    result = RUN.invoke(app, ["compose", text, "--catalog", str(catalog)])
    assert result.exit_code == 2
    message, shown, caret = result.output.rstrip("\n").split("\n")
    assert message.startswith(f"superdiff: at column {column}: ")
    assert told in message
    assert (shown, caret) == (text, " " * (column - 1) + "^")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compose", "a", "--candidates", "17"], "candidates must be 1 to 16"),
        (["compose", "a AND[balanced] b", "--particles", "2"], "particles must be 1"),
        (["compose", "a", "--steps", "0"], "steps must be 1 to 1000"),
        (["compose", "a OR b", "--kernel", "deterministic"], "no density"),
        (["compose", "a", "--out", "x.xyz"], "its ending must be that of a picture"),
        (["compose", "a", "--out", "/proc/none/x.png"], "cannot be written"),
        (["models", "--catalog", "/nothing/here.toml"], "no such catalogue"),
        (["models", "add", "", "x"], "a name has 1 to 200 printable characters"),
        (["models", "add", "a/b", "x"], "no slash"),
        (["models", "add", "a", "x", "--revision", "main"], "models.a.revision: only a source hub:OWNER/NAME"),
        (["models", "add", "a", __file__], "only .safetensors files are loaded"),
        (["calibrate", "cat"], "no model named 'cat'"),
    ],
)
def test_a_mistake_is_told_without_a_stack_trace(catalog, arguments, told):
    given = arguments if "--catalog" in arguments else [*arguments, "--catalog", str(catalog)]
    result = RUN.invoke(app, given)
    assert result.exit_code == 2
    assert told in result.output
    assert "Traceback" not in result.output


def test_calibrate_stores_a_curve_that_models_then_reports(catalog):
    before = RUN.invoke(app, ["models", "check", "--catalog", str(catalog)])
    assert "Gaussian fallback" in before.output
    done = RUN.invoke(
        app,
        [
            "calibrate",
            "sd",
            "--catalog",
            str(catalog),
            "--images",
            "4",
            "--steps",
            "3",
            "--prompt",
            "a",
            "--prompt",
            "b",
        ],
    )
    assert done.exit_code == 0, done.output
    assert read_calibration(catalog.parent / "sd" / CALIBRATION_FILE) is not None
    after = RUN.invoke(app, ["models", "check", "--catalog", str(catalog)])
    assert "measured" in after.output
    (catalog.parent / "sd" / CALIBRATION_FILE).unlink()


def test_models_are_listed_without_being_loaded(catalog):
    listed = RUN.invoke(app, ["models", "--catalog", str(catalog)])
    assert listed.exit_code == 0, listed.output
    assert "sd: " in listed.output
    assert "float32" in listed.output


def test_check_says_which_load_and_which_compose(catalog):
    text = '[models.a]\nsource = "sd"\n[models.b]\nsource = "sd"\n'
    path = catalog.with_name("several.toml")
    path.write_text(text)
    fine = RUN.invoke(app, ["models", "check", "--catalog", str(path)])
    assert fine.exit_code == 0, fine.output
    assert "compose with one another: a, b" in fine.output
    path.write_text(text + '[models.gone]\nsource = "nowhere"\n')
    broken = RUN.invoke(app, ["models", "check", "--catalog", str(path)])
    assert broken.exit_code == 1
    assert "gone: its source must be a diffusers folder" in broken.output


def test_add_writes_what_the_catalogue_then_reads(catalog, tmp_path):
    path = tmp_path / "new.toml"
    for name, source in (("first", str(catalog.parent / "sd")), ("fine.tune v2", "tuned.safetensors")):
        arguments = ["models", "add", name, source, "--dtype", "float16", "--catalog", str(path)]
        if source.endswith("safetensors"):
            arguments += ["--family", "stable_diffusion_xl"]
        added = RUN.invoke(app, arguments)
        assert added.exit_code == 0, added.output
    held = Catalog.read(path)
    assert held.names == ("first", "fine.tune v2")
    assert held.entry("fine.tune v2").family == "stable_diffusion_xl"
    again = RUN.invoke(app, ["models", "add", "first", "x", "--catalog", str(path)])
    assert again.exit_code == 2
    assert "has it already" in again.output
    wrong = RUN.invoke(app, ["models", "add", "third", "x.safetensors", "--catalog", str(path)])
    assert wrong.exit_code == 2
    assert "family" in wrong.output
    assert Catalog.read(path).names == held.names
