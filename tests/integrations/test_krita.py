"""The plug-in inside of a real Krita, on a virtual screen, against a real service.

One Krita plays all cases: its start costs more than all of them. What a layer must hold is asked of the service again,
by a request that this file writes itself.
"""

import base64
import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from scripts.build_integrations import build

DRIVER = Path(__file__).parent / "krita_driver"
EXPRESSION = '"a red circle" AND "a blue star"'
FIELDS = {"expression": EXPRESSION, "seed": "7", "steps": 3, "strength": 0.0, "from_canvas": False}
# Mostly the start, in which Krita unpacks its brushes; far less on a machine that is not busy.
PLAYED_S = 300
pytestmark = pytest.mark.timeout(PLAYED_S + 120)


def canvas(width, height):
    """Opaque BGRA pixels that differ everywhere."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (3 * x + 5 * y) % 256, np.full_like(x, 255)], -1).astype(np.uint8)


def rectangle(size, x, y, width, height, value=255):
    mask = np.zeros(size[::-1], np.uint8)
    mask[y : y + height, x : x + width] = value
    return mask


def case(name, size=(64, 48), mask=None, depth="U8", cancel=False, close=False, **fields):
    return {"name": name, "canvas": size, "mask": mask, "depth": depth, "cancel": cancel, "close": close} | {
        "fields": FIELDS | fields
    }


WIDE = (160, 120)
CASES = [
    case("whole"),
    case("odd size", (50, 40)),
    case("selection", WIDE, rectangle(WIDE, 100, 50, 20, 30)),
    case("corner, half selected", WIDE, rectangle(WIDE, 150, 0, 10, 16, value=100)),
    case("larger than the model's size", WIDE, rectangle(WIDE, 20, 10, 100, 70), strength=0.6),
    case("from the canvas", (64, 64), from_canvas=True, strength=0.5),
    case("sixteen bits", (64, 64), rectangle((64, 64), 8, 8, 24, 24), depth="U16"),
    case("wrong text", expression="a AND (b OR"),
    case("cancelled", cancel=True, steps=997),  # no other job of the server has so many
    case("closed", close=True, steps=60),
    case("nobody there", url="http://127.0.0.1:9"),
    case("no address", url="127.0.0.1:8000"),
]


def find_krita(needed):
    for program, package in (("krita", "krita, python3-pyqt5 and python3-sip"), ("Xvfb", "xvfb")):
        if shutil.which(program) is None:
            needed(f"{program} is not installed (scripts/install_test_tools.sh installs {package})")
    return Path(shutil.which("krita"))


def install(krita, archive, resources):
    """Put a plug-in into a Krita's resource folder as Krita's own importer does it."""
    path = krita.resolve().parents[1] / "share/krita/pykrita/plugin_importer/plugin_importer.py"
    spec = importlib.util.spec_from_file_location("plugin_importer", path)
    importer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(importer)
    resources.mkdir(parents=True, exist_ok=True)
    (imported,) = importer.PluginImporter(str(archive), str(resources), lambda _: False).import_all()
    return imported


@pytest.fixture(scope="module")
def imported(needed, tmp_path_factory):
    """What Krita's importer says of the zip, and where it put it."""
    home = tmp_path_factory.mktemp("home")
    krita = find_krita(needed)
    archive, _ = build(tmp_path_factory.mktemp("dist"))
    return krita, home, install(krita, archive, home / ".local/share/krita")


@contextlib.contextmanager
def screen():
    """A virtual screen; its name."""
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        with os.fdopen(read) as number:
            yield f":{number.readline().strip()}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def told(imported, service, tmp_path_factory):
    """What came of the cases."""
    krita, home, _ = imported
    pykrita = home / ".local/share/krita/pykrita"
    shutil.copytree(DRIVER, pykrita, dirs_exist_ok=True)
    config = home / ".config/kritarc"
    config.parent.mkdir()
    config.write_text("[python]\nenable_superdiff_krita=true\nenable_superdiff_driver=true\n")
    runtime = home / "runtime"
    runtime.mkdir(mode=0o700)
    folder = tmp_path_factory.mktemp("cases")
    (folder / "cases.json").write_text(json.dumps([written(c, service.url) for c in CASES]))
    # Its Python is the system's: with another one first in the path it looks for PyQt5 there.
    path = f"{krita.parent}:/usr/bin:/bin"
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path, "LANG": "C.UTF-8"}
    environment |= {"SUPERDIFF_DRIVER": str(folder), "QT_LOGGING_RULES": "*.debug=false"}
    with screen() as display, (folder / "log").open("w") as log:
        running = subprocess.Popen(
            [str(krita), "--nosplash"],
            env=environment | {"DISPLAY": display},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            running.wait(PLAYED_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"Krita did not end within {PLAYED_S} s: {(folder / 'log').read_text()[-3000:]}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait(30)
    assert (folder / "told.json").exists(), (folder / "log").read_text()[-3000:]
    told = json.loads((folder / "told.json").read_text())
    assert "error" not in told, told["error"]
    return told


def base(size, depth):
    """The bottom layer's pixels, as Krita has them."""
    pixels = canvas(*size)
    return pixels if depth == "U8" else pixels.astype(np.uint16) * 257


def written(case, url):
    """A case as the driver reads it."""
    mask = None if case["mask"] is None else encoded(case["mask"])
    fields = {"url": url} | case["fields"]
    return case | {"mask": mask, "bgra": encoded(base(case["canvas"], case["depth"])), "fields": fields}


def encoded(array):
    return base64.b64encode(array.tobytes()).decode()


def decoded(data, size, dtype=np.uint8):
    return np.frombuffer(base64.b64decode(data), dtype).reshape(size[1], size[0], 4)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def drawn(service, **body):
    """The native API's answer to a request, as BGR."""
    whole = {"expression": EXPRESSION, "steps": 3, "seed": 7} | body
    answer = httpx.post(f"{service.url}/v1/superpose", json=whole, headers={"Accept": "image/png"}, timeout=60)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))[..., ::-1]


def layers(told, name, depth="U8"):
    """The bottom layer and the new one."""
    size = next(c["canvas"] for c in CASES if c["name"] == name)
    below, above = told[name]["layers"]
    assert above["name"] == EXPRESSION
    assert (above["model"], above["depth"]) == ("RGBA", "U8")
    below = decoded(below["bgra"], size, np.uint8 if depth == "U8" else np.uint16)
    np.testing.assert_array_equal(below, base(size, depth))
    return decoded(above["bgra"], size)


def inpainted(service, told, name, window, strength=None):
    """Check a case with a selection: the layer holds the answer for ``window`` where something is selected, no more."""
    (chosen,) = (c for c in CASES if c["name"] == name)
    x, y, width, height = window
    cut = (slice(y, y + height), slice(x, x + width))
    image = canvas(*chosen["canvas"])[cut][..., [2, 1, 0]]
    extra = {} if strength is None else {"strength": strength}
    answer = drawn(service, image=png(image), mask=png(chosen["mask"][cut]), **extra)
    above = layers(told, name, chosen["depth"])
    selected = chosen["mask"] > 0
    np.testing.assert_array_equal(above[..., 3], np.where(selected, 255, 0))
    np.testing.assert_array_equal(above[cut][..., :3][selected[cut]], answer[selected[cut]])
    if chosen["depth"] == "U8":
        seen = decoded(told[name]["projection"], chosen["canvas"])
        np.testing.assert_array_equal(seen[~selected], canvas(*chosen["canvas"])[~selected])
        np.testing.assert_array_equal(seen[cut][..., :3][selected[cut]], answer[selected[cut]])
        assert (seen[selected] != canvas(*chosen["canvas"])[selected]).any()


def test_krita_s_importer_takes_the_zip(imported):
    _, home, info = imported
    pykrita = home / ".local/share/krita/pykrita"
    assert (info["name"], info["ui_name"]) == ("superdiff_krita", "Superdiff")
    assert (pykrita / "superdiff_krita.desktop").is_file()
    assert {"__init__.py", "Manual.html", "client.py"} <= {p.name for p in (pykrita / "superdiff_krita").iterdir()}


def test_without_a_selection_a_picture_fills_the_canvas(told, service):
    above = layers(told, "whole")
    assert (above[..., 3] == 255).all()
    np.testing.assert_array_equal(above[..., :3], drawn(service, width=64, height=48))
    assert told["whole"]["status"].startswith("Done. Seed 7\na red circle: ")


def test_a_canvas_of_a_size_that_the_model_does_not_have_is_filled_too(told, service):
    above = layers(told, "odd size")
    assert (above[..., 3] == 255).all()
    np.testing.assert_array_equal(above[..., :3], drawn(service, width=64, height=48)[:40, :50])


def test_a_selection_is_painted_anew_and_nothing_else(told, service):
    inpainted(service, told, "selection", (78, 33, 64, 64))


def test_a_selection_at_the_canvas_edge_that_is_selected_by_halves(told, service):
    inpainted(service, told, "corner, half selected", (96, 0, 64, 64))


def test_a_selection_larger_than_the_model_s_size(told, service):
    inpainted(service, told, "larger than the model's size", (14, 5, 112, 80), strength=0.6)


def test_a_document_of_sixteen_bits(told, service):
    inpainted(service, told, "sixteen bits", (0, 0, 64, 64))


def test_a_picture_begun_from_the_canvas(told, service):
    above = layers(told, "from the canvas")
    image = png(canvas(64, 64)[..., [2, 1, 0]])
    np.testing.assert_array_equal(above[..., :3], drawn(service, image=image, strength=0.5))


def test_krita_goes_on_while_the_picture_is_drawn(told):
    long = told["cancelled"]
    assert long["at_once"] == {"button": "Cancel", "layers": 1}
    assert long["ticks"] > 1
    assert any(said.startswith("Step ") and said.endswith(" of 997") for said in long["said"])


def test_cancel_cancels_on_the_server(told, service):
    assert told["cancelled"]["status"] == "Cancelled."
    assert len(told["cancelled"]["layers"]) == 1
    jobs = httpx.get(f"{service.url}/v1/jobs").json()["data"]
    assert [job["status"] for job in jobs if job["steps"] == 997] == ["cancelled"]


def test_a_document_that_was_closed_meanwhile_gets_no_picture(told):
    assert told["closed"]["status"] == "The document was closed; the picture is lost."


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong text", "expression: at column 12: expected a prompt"),
        ("nobody there", "superdiff-serve does not answer at http://127.0.0.1:9 ("),
        ("no address", "the address of the service must look like http://127.0.0.1:8000, not '127.0.0.1:8000'"),
    ],
)
def test_what_goes_wrong_is_said_in_plain_words(told, name, said):
    assert told[name]["status"].startswith(said)
    assert len(told[name]["layers"]) == 1
