import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from pipelines.catalog import Catalog
from pipelines.composition import And, Not, Or, Prompt
from pipelines.families.folder import CALIBRATION_FILE, read_calibration
from pipelines.params import SamplingParams, Select
from pipelines.sampler import sample
from service.cli import app
from service.commands.common import Exit, refused
from service.commands.inline import inline, protocol_of
from service.commands.output import contact_sheet
from service.commands.remote import parsed
from service.metadata import read
from service.pictures import encode_picture
from service.schemas.requests import DensityRequest, SuperposeRequest
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
        (["compose", "a", "--candidates", "17"], "candidates: input should be less than or equal to 16"),
        (["compose", "a AND[balanced] b", "--particles", "2"], "particles must be 1"),
        (["compose", "a", "--steps", "0"], "steps: input should be greater than or equal to 1"),
        (["compose", "a OR b", "--kernel", "deterministic"], "no density"),
        (["compose", "a", "--out", "x.xyz"], "its extension must be one of"),
        (["compose", "a", "--out", "/proc/none/x.png"], "cannot be written"),
        (["models", "--catalog", "/nothing/here.toml"], "no such catalogue"),
        (["models", "add", "", "x"], "a name has 1 to 200 printable characters"),
        (["models", "add", "a/b", "x"], "no slash"),
        (["models", "add", "a", "x", "--revision", "main"], "models.a.revision: only hub:OWNER/NAME sources"),
        (["models", "add", "a", __file__], "only .safetensors files are loaded"),
        (["models", "add", "a", "not/there"], "models.a.source: not/there: there is no such file or folder"),
        (["models", "add", "a", "x.safetensors", "--family", "stable_diffusion"], "there is no such file or folder"),
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
    assert broken.exit_code == 2
    assert "gone: its source must be a diffusers folder" in broken.output


def test_add_writes_what_the_catalogue_then_reads(catalog, tmp_path):
    path = tmp_path / "new.toml"
    (tmp_path / "tuned.safetensors").write_bytes(b"")
    for name, source in (("first", str(catalog.parent / "sd")), ("fine.tune v2", "tuned.safetensors")):
        arguments = ["models", "add", name, source, "--dtype", "float16", "--catalog", str(path)]
        if source.endswith("safetensors"):
            arguments += ["--family", "stable_diffusion_xl"]
        added = RUN.invoke(app, arguments)
        assert added.exit_code == 0, added.output
    held = Catalog.read(path)
    assert held.names == ("first", "fine.tune v2")
    assert held.entry("fine.tune v2").family == "stable_diffusion_xl"
    again = RUN.invoke(app, ["models", "add", "first", str(catalog.parent / "sd"), "--catalog", str(path)])
    assert again.exit_code == 2
    assert "already has this model" in again.output
    wrong = RUN.invoke(app, ["models", "add", "third", "x.safetensors", "--catalog", str(path)])
    assert wrong.exit_code == 2
    assert "family" in wrong.output
    assert Catalog.read(path).names == held.names


def test_check_prints_what_it_found_and_nothing_of_its_libraries(tmp_path):
    """diffusers warns of settings that it does not know; a process of its own, as it is imported once."""
    tiny.stable_diffusion(tmp_path / "sd")
    config = tmp_path / "sd/unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"unheard_of": 1}))
    (tmp_path / "superdiff.toml").write_text('[models.sd]\nsource = "sd"\n')
    command = [sys.executable, "-m", "service.cli", "models", "check", "--catalog", str(tmp_path / "superdiff.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.partition(":")[0] for line in ended.stdout.splitlines()] == ["sd", "compose with one another"]


def test_several_in_a_folder_are_numbered_and_get_a_contact_sheet(catalog, tmp_path):
    composed(catalog, "a", "-n", "5", "-o", f"{tmp_path}/out/", "--seed", "4", "--steps", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *(f"composed-{i}.png" for i in range(5)),
        "contact-sheet.png",
    ]
    files = [(tmp_path / f"out/composed-{i}.png").read_bytes() for i in range(5)]
    assert [read(data)["request"]["seed"] for data in files] == [4, 5, 6, 7, 8]
    with Image.open(tmp_path / "out/contact-sheet.png") as sheet:
        assert sheet.size == (4 * 20 + 4, 2 * 20 + 4)
        first_of_second_row = np.asarray(sheet)[24:40, 4:20]
    assert np.array_equal(first_of_second_row, np.asarray(Image.open(io.BytesIO(files[4]))))


def test_a_folder_that_is_there_takes_files_of_the_format_asked_for(catalog, tmp_path):
    composed(catalog, "a", "-o", str(tmp_path), "--output-format", "webp", "--steps", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["composed-0.webp"]


def test_the_same_from_a_picture_and_a_mask_and_remade_from_them(catalog, tmp_path):
    rng = np.random.default_rng(0)
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    image.write_bytes(encode_picture(rng.integers(0, 256, (17, 19, 3), dtype=np.uint8), "png"))
    painted = np.zeros((17, 19), np.uint8)
    painted[:, 9:] = 255
    Image.fromarray(painted).save(mask)
    given = ["--image", str(image), "--mask", str(mask)]
    out = tmp_path / "one.png"
    composed(catalog, "a AND b", *given, "--strength", "0.7", "--mask-feather", "0", "-o", str(out))
    kept = np.asarray(Image.open(out))[:, :9]
    assert np.array_equal(kept, np.asarray(Image.open(image))[:, :9])

    def remade(*options):
        return RUN.invoke(app, ["remake", str(out), "--catalog", str(catalog), *options])

    again = remade(*given)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "one-remade.png").read_bytes() == out.read_bytes()
    without, other = remade(), remade("--image", str(mask), "--mask", str(mask))
    assert (without.exit_code, other.exit_code) == (2, 2)
    assert "was made from another picture: give its --image, SHA-256" in without.output
    assert "not the file that" in other.output


def test_json_is_all_of_stdout_and_names_the_files(catalog, tmp_path):
    out = tmp_path / "x.png"
    options = ["--json", "--include-trajectory", "--include-lift-maps", "-o", str(out)]
    result = RUN.invoke(app, ["compose", "a AND b", "--catalog", str(catalog), "--steps", "2", *options])
    told = json.loads(result.stdout)
    (image,) = told["images"]
    assert image["file"] == str(out)
    assert "b64_json" not in image
    assert len(told["trajectory"]) == 2
    assert sorted(Path(each["file"]).name for each in image["lift_maps"].values()) == ["x-lift-0.png", "x-lift-1.png"]
    for command in (["models", "list"], ["models", "check"]):
        assert json.loads(RUN.invoke(app, [*command, "--json", "--catalog", str(catalog)]).stdout)
    asked = ["density", str(out), "a OR b", "--steps", "2", "--draws", "1", "--seed", "1", "--catalog", str(catalog)]
    explained = json.loads(RUN.invoke(app, [*asked, "--json"]).stdout)
    assert explained["object"] == "density"
    assert "posterior" in RUN.invoke(app, asked).stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compose", "a", "-o", "{here}/new.gif"], "its extension must be one of .png, .jpg, .jpeg, .webp"),
        (["compose", "a", "-o", "{here}/a.png", "--output-format", "jpeg"], "does not match --output-format jpeg"),
        (["compose", "a", "-o", "{here}/dir.png/x.png"], "cannot be written: {here}/dir.png is not a folder"),
        (["compose", "a", "-n", "2", "-o", "{here}/taken.png"], "taken-1.png is a folder"),
        (["compose", "a", "--image", "{here}/none.png"], "--image {here}/none.png: cannot be read: No such file"),
        (["density", "{here}/none.png", "a"], "none.png: cannot be read: No such file"),
        (["density", "{here}/dir.png", "a"], "image must be one of PNG"),
        (["remake", "{here}/dir.png"], "contains no request; only PNGs written by superdiff do"),
        (["compose", "a", "--fit", "squash"], "fit: input should be 'crop', 'pad' or 'stretch'"),
        (["compose", "a", "--url", "localhost:1"], "it must begin with http:// or https://"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_before_anything_is_computed(catalog, tmp_path, arguments, told):
    (tmp_path / "dir.png").write_text("a file, not a folder, and not a picture")
    (tmp_path / "taken-1.png").mkdir()
    given = [argument.format(here=tmp_path) for argument in arguments]
    if "-o" not in given and given[0] == "compose":
        given += ["-o", str(tmp_path / "x.png")]
    result = RUN.invoke(app, [*given, "--catalog", str(catalog)])
    assert result.exit_code == Exit.WRONG
    assert told.format(here=tmp_path) in result.output.replace("\n", "")
    assert not (tmp_path / "x.png").exists()


def test_every_field_of_a_request_is_an_option():
    commands = get_command(app).commands
    for name, model, apart in (
        ("compose", SuperposeRequest, {"response_format", "callback_url"}),
        ("density", DensityRequest, {"components", "callback_url"}),
    ):
        options = {parameter.name for parameter in commands[name].params}
        assert set(model.model_fields) - apart <= options


def test_docs_tell_of_every_command_option_and_exit_code():
    """docs/cli.md says what --help says, and nothing else of the options."""
    text = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    sections = dict(re.findall(r"^## `superdiff ([\w ]+)`.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    found = dict(leaf_commands(get_command(app)))
    assert set(sections) == set(found)
    for name, command in found.items():
        rows = re.findall(r"^\| (`-.*`) \| (.*) \|$", sections[name], re.MULTILINE)
        written = {option: told for options, told in rows for option in re.findall(r"`(-[-\w]+)`", options)}
        assert written, name
        assert written == {option: told for option, told in options_of(command) if option != "--help"}, name
        assert " ".join(command.help.split()) in " ".join(sections[name].split()), name
    codes = dict(re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE))
    assert set(codes) == {str(int(code)) for code in Exit}


def options_of(command):
    for parameter in command.params:
        if parameter.param_type_name == "option":
            variable = f" Also {parameter.envvar} in the environment." if parameter.envvar else ""
            for option in parameter.opts:
                yield option, re.sub(r" +\[\w+\]$", "", parameter.help) + variable


def leaf_commands(group, prefix=""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaf_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm", "LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "socket,1,0"}, None),
        ({}, None),
    ],
)
def test_the_terminal_s_protocol_is_read_from_the_environment(environment, protocol):
    assert protocol_of(environment) == protocol


def test_a_picture_inline_is_the_picture():
    rng = np.random.default_rng(0)
    data = encode_picture(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), "png")
    kitty = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", inline(data, "kitty"))
    assert base64.b64decode("".join(piece for _, piece in kitty)) == data
    assert all(len(piece) <= 4096 for _, piece in kitty)
    assert [head for head, _ in kitty] == ["a=T,f=100,m=1", *["m=1"] * (len(kitty) - 2), "m=0"]
    found = re.fullmatch(r"\x1b]1337;File=inline=1;size=(\d+):([^\x07]*)\x07", inline(data, "iterm"))
    assert base64.b64decode(found[2]) == data
    assert int(found[1]) == len(data)
    jpeg = encode_picture(np.zeros((2, 2, 3), np.uint8), "jpeg")
    shown = re.search(r";([^\x1b]*)\x1b", inline(jpeg, "kitty"))[1]
    assert base64.b64decode(shown).startswith(b"\x89PNG")


def test_a_contact_sheet_of_pictures_of_several_sizes_holds_them_all():
    small, large = (encode_picture(np.full((*size, 3), 9, np.uint8), "png") for size in ((4, 6), (8, 2)))
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet([small, large]))))
    assert sheet.shape == (8 + 4 + 4, 2 * (6 + 4) + 4, 3)
    assert (sheet == 9).all(-1).sum() == 4 * 6 + 8 * 2


def test_events_are_read_as_the_standard_says():
    lines = ["event: queued", 'data: {"a":', "data: 1}", "id: 7", "", ": ping", "", "data: [2]", "", "event: x", ""]
    assert [(told.kind, told.data, told.last) for told in parsed(lines)] == [
        ("queued", {"a": 1}, "7"),
        ("message", [2], "7"),
    ]


def test_a_refusal_that_names_a_field_is_wrong_input_and_any_other_is_the_service_s():
    field = refused({"detail": "#/steps: too many", "errors": [{"pointer": "#/steps", "detail": "too many"}]})
    assert (str(field), field.code) == ("steps: too many", Exit.WRONG)
    column = refused({"detail": "at column 3: no", "errors": [{"pointer": "#/expression", "column": 3}]}, "a b c")
    assert column.shown.split("\n") == ["a b c", "  ^"]
    assert refused({"detail": "the queue is full"}).code == Exit.REFUSED


def test_remote_commands_do_not_load_torch():
    code = "import sys, service.cli; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False, env=os.environ).returncode == 0
