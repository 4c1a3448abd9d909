import pytest
from PIL import Image
from typer.testing import CliRunner

from pipelines.catalog import Catalog
from pipelines.composition import And, Average, Or, Product, Prompt
from pipelines.errors import InvalidInputError
from pipelines.families.folder import CALIBRATION_FILE, read_calibration
from service.cli import app, parse_words
from tests.pipelines.families import tiny

RUN = CliRunner()
NAMES = ("shapes", "round")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    tiny.stable_diffusion(root / "sd")
    path = root / "superdiff.toml"
    path.write_text('[models.sd]\nsource = "sd"\n')
    return path


def test_words_become_an_expression():
    a, b = Prompt("a", "shapes"), Prompt("b", "round")
    assert parse_words(["a"], NAMES) == a
    assert parse_words(["a", "and", "b@round"], NAMES) == And((a, b))
    assert parse_words(["a", "OR", "b@round"], NAMES, 2.0) == Or((a, b), 2.0)
    assert parse_words(["a", "average", "a", "average", "a"], NAMES) == Average((a, a, a))
    assert parse_words(["@round", "product", "me@home"], NAMES) == Product(
        (Prompt("", "round"), Prompt("me@home", "shapes"))
    )


@pytest.mark.parametrize("words", [["a", "and"], ["a", "b", "c"], ["a", "and", "b", "or", "c"], []])
def test_words_that_do_not_alternate_are_refused(words):
    with pytest.raises(InvalidInputError, match="operators are or, and, average, product"):
        parse_words(words, NAMES)


def test_compose_writes_pictures(catalog, tmp_path):
    words = ["compose", "a red circle", "and", "a blue star", "--catalog", str(catalog), "--steps", "2"]
    one = RUN.invoke(app, [*words, "--out", str(tmp_path / "new/one.png"), "--seed", "4"])
    assert one.exit_code == 0, one.output
    with Image.open(tmp_path / "new/one.png") as image:
        assert image.size == (16, 16)
    assert "seed 4" in one.output
    two = RUN.invoke(app, [*words, "--out", str(tmp_path / "two.webp"), "-n", "2"])
    assert two.exit_code == 0, two.output
    with Image.open(tmp_path / "two-1.webp") as image:
        assert image.format == "WEBP"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compose", "a", "b"], "operators are"),
        (["compose", "a", "--steps", "0"], "steps must be 1 to 1000"),
        (["compose", "a", "or", "b", "--kernel", "deterministic"], "no density"),
        (["compose", "a", "--out", "x.xyz"], "its ending must be that of a picture"),
        (["compose", "a", "--out", "/proc/none/x.png"], "cannot be written"),
        (["models", "--catalog", "/nothing/here.toml"], "no such catalogue"),
        (["models", "add", "", "x"], "a name has 1 to 200 printable characters"),
        (["models", "add", "a/b", "x"], "no slash"),
        (["models", "add", "a", "x", "--revision", "main"], "models.a.revision: only a source hub:OWNER/NAME"),
        (["models", "add", "a", __file__], "only .safetensors is loaded"),
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
