"""The page at /, in a real browser against a real server process."""

import ast
import base64
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from pipelines import grammar

CHROMIUM = shutil.which("chromium")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
WAIT_MS = 30_000
REQUIRED = "SUPERDIFF_REQUIRE_BROWSER"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    if CHROMIUM is None:
        missing = "NO BROWSER: chromium is not installed, the page is NOT tested; run scripts/install_test_tools.sh"
        (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(missing)
    expect.set_options(timeout=WAIT_MS)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@dataclass
class Watch:
    """What a browser did besides what was asked: where it sent requests, what it complained of."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: str | None = None


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def opened(browser, server, watch):
    """Opens the page in a browser of its own; afterwards no request has left the host and nothing was complained of."""
    contexts = []

    def open_page(**options) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        context.on("request", lambda request: watch.requests.append(request.url))
        context.on("console", lambda m: watch.complaints.append(m.text) if m.type in {"error", "warning"} else None)
        context.on("weberror", lambda error: watch.complaints.append(str(error.error)))
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model-0 option")).to_have_count(3)
        return page

    yield open_page
    for context in contexts:
        context.close()
    for job in {found for url in watch.requests for found in re.findall(r"/v1/jobs/(\w+)", url)}:
        httpx.delete(f"{server.url}/v1/jobs/{job}", timeout=30)  # what runs on would slow the next test
    own = (server.url + "/", "data:image/", f"blob:{server.url}/")
    assert [url for url in watch.requests if not url.startswith(own)] == []
    assert [c for c in watch.complaints if not (watch.expected and re.search(watch.expected, c))] == []


@pytest.fixture
def page(opened):
    return opened()


REFUSED = r"Failed to load resource: the server responded with a status of 4\d\d"


def use(page, **settings):
    """Open the settings and fill some in."""
    if not page.locator("#settings").is_visible():
        page.click("#settings-section > summary")
    for name, value in settings.items():
        page.fill(f"#{name}", str(value))


def compose(page, *prompts, **settings):
    """Write prompts, set what is to be set and press the button."""
    for i, prompt in enumerate(prompts):
        page.fill(f"#prompt-{i}", prompt)
    use(page, **settings)
    page.click("#compose")


def finished(page, status="completed"):
    """The job on the stage, once it is over."""
    page.wait_for_selector(f"#stage[data-status={status}]")
    return page.get_attribute("#stage", "data-job")


def until(page, condition):
    """Wait for a JavaScript condition. Playwright's own waiting evaluates strings, which the page's policy forbids."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to be: {condition}")


def opaque(page, canvas, least=128):
    """How many pixels of a canvas are so opaque, of 255."""
    data = f"""() => {{
        const canvas = document.querySelector("{canvas}");
        const {{ data }} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.filter((value, i) => i % 4 === 3 && value >= {least}).length;
    }}"""
    return page.evaluate(data)


def asked(server, job):
    return httpx.get(f"{server.url}/v1/jobs/{job}").raise_for_status().json()


def drawn(server, job, i=0):
    return httpx.get(f"{server.url}/v1/jobs/{job}/images/{i}").raise_for_status().content


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


RECORD = """() => {
    const at = (id) => document.getElementById(id);
    window.seen = [];
    const look = () => window.seen.push({
        status: at("stage").dataset.status,
        picture: at("picture").getAttribute("src") ?? "",
        progress: at("progress").value,
        text: at("progress-text").textContent,
        weight: Number(at("weight-chart").dataset.points),
        density: Number(at("density-chart").dataset.points),
    });
    new MutationObserver(look).observe(at("stage"), { subtree: true, attributes: true, childList: true });
}"""
"""Writes down what the stage shows, at each change of it."""


def test_preview_charts_and_progress_move(page):
    """On a picture of many steps: one of the default's may be drawn before a busy browser asks for its events."""
    page.evaluate(RECORD)
    compose(page, "a red circle", "a blue star", steps=300)
    finished(page)
    on_the_way = [seen for seen in page.evaluate("window.seen") if seen["status"] == "running"]
    assert any(seen["picture"].startswith("data:image/jpeg") for seen in on_the_way)
    for moving in ("progress", "weight", "density"):
        values = [seen[moving] for seen in on_the_way]
        assert values == sorted(values)
        assert len(set(values)) >= 5, moving
    assert any(re.match(r"Step \d+ of 300 +σ [\d.]+$", seen["text"]) for seen in on_the_way)


def test_a_first_visitor_presses_compose_and_sees_a_picture_come(page, server, tmp_path):
    """Nothing but the button; what is shown is what the service says."""
    page.click("#compose")
    expect(page.locator("#prompt-0")).to_have_value("a red circle")
    job = finished(page)
    until(page, "document.querySelector('#picture').naturalWidth === 64")
    told = asked(server, job)["result"]
    (image,) = told["images"]
    rows = page.locator("#told-rows tr")
    for i, name in enumerate(["a red circle", "a blue star"]):
        expect(rows.nth(i).locator("th")).to_have_text(name)
        shown = [text.replace("−", "-") for text in rows.nth(i).locator("td.numeric").all_text_contents()]
        assert shown == [f"{image['weight'][name]:.2f}", f"{image['lift'][name]:.1f}"]
    assert str(image["seed"]) in page.text_content("#stage-facts")
    for chart in ("weight-chart", "density-chart"):
        expect(page.locator(f"#{chart}")).to_have_attribute("data-points", "25")
    with page.expect_download() as download:
        page.click("#download")
    assert Path(download.value.path()).read_bytes() == drawn(server, job)
    page.screenshot(path=tmp_path / "done.png", full_page=True)


def test_the_charts_tell_the_trajectory_of_the_picture_that_is_shown(page, server):
    """Read at a step by the slider; the numbers are those of the chosen candidate of the chosen image."""
    compose(page, "a red circle", "a blue star", steps=5, images=2, candidates=2, seed=5)
    job = finished(page)
    page.click("#strip button >> nth=1")
    page.fill("#reading", "3")
    point = httpx.get(f"{server.url}/v1/jobs/{job}/trajectory").json()[2]
    sample = 2 + asked(server, job)["result"]["images"][1]["candidate"]
    weights, (first, second) = point["weight"][sample], point["log_density"][sample]
    told = [text.replace("−", "-") for text in page.locator("#legend .numbers").all_text_contents()]
    half = (first - second) / 2
    assert [float(text.removesuffix(" nats")) for text in told] == pytest.approx(
        [weights[0], half, weights[1], -half], abs=0.06
    )
    assert "σ" in page.text_content("#reading-told")


def test_lift_maps_lie_over_the_picture(page, tmp_path):
    compose(page, "a red circle", "a blue star", steps=4, seed=1)
    finished(page)
    expect(page.locator("#lift-map")).to_be_hidden()
    for i in (0, 1):
        page.click(f"#map-{i}")
        expect(page.locator("#lift-map")).to_be_visible()
        expect(page.locator(f"#map-{i}")).to_have_attribute("aria-pressed", "true")
        assert opaque(page, "#lift-map", least=1) > 0
    picture, overlay = page.locator("#picture").bounding_box(), page.locator("#lift-map").bounding_box()
    assert picture == overlay
    page.fill("#opacity", "0.25")
    assert page.evaluate("getComputedStyle(document.querySelector('#lift-map')).opacity") == "0.25"
    page.screenshot(path=tmp_path / "map.png")
    page.click("#map-1")
    expect(page.locator("#lift-map")).to_be_hidden()


def test_a_text_s_error_stands_under_a_caret_at_its_column(page, watch, tmp_path):
    watch.expected = REFUSED
    page.click("#edit-text")
    page.fill("#text", "a cat AND\n(a dog OR")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#text-error")).to_contain_text("Column 20: Expected a prompt, got the end of the text")
    line, caret = page.text_content("#caret").split("\n")
    assert (line, caret) == ("(a dog OR", " " * 9 + "^")
    expect(page.locator("#text")).to_be_focused()
    expect(page.locator("#text")).to_have_attribute("aria-invalid", "true")
    page.screenshot(path=tmp_path / "error.png")
    # Columns count characters, not the halves of which a browser makes an emoji.
    page.fill("#text", '"🦊🦊" AND (')
    page.click("#compose")
    expect(page.locator("#text-error")).to_contain_text("Column 11")
    assert page.text_content("#caret").split("\n")[1] == " " * 10 + "^"
    page.fill("#text", '"a red circle" AND ("a blue star" OR "a green square")')
    expect(page.locator("#text-error")).to_have_count(0)
    use(page, steps=2)
    page.click("#compose")
    finished(page)
    expect(page.locator("#told-rows tr")).to_have_count(3)


def test_what_is_refused_is_told_at_its_field(page, watch):
    watch.expected = REFUSED
    compose(page, "a red circle", "a blue star", steps=0)
    expect(page.locator("#steps-error")).to_contain_text("greater than or equal to 1")
    expect(page.locator("#steps")).to_be_focused()
    expect(page.locator("#status")).to_contain_text("greater than or equal to 1")
    page.fill("#steps", "2")
    expect(page.locator("#steps-error")).to_have_count(0)
    page.fill("#weight-1", "99999")
    page.click("#compose")
    expect(page.locator("#weight-1")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#weight-1")).to_be_focused()
    page.fill("#weight-1", "")
    page.fill("#prompt-1", "")
    page.click("#compose")
    expect(page.locator("#prompt-1-error")).to_have_text("Write a prompt, or remove this component.")


def test_boxes_and_text_are_two_views_of_one_thing(page):
    page.fill("#prompt-0", 'a "red" circle')
    page.fill("#prompt-1", "a blue star")
    page.select_option("#model-1", "shapes-sharp")
    page.fill("#weight-1", "1.5")
    page.check("#not-1", force=True)
    written = r'"a \"red\" circle" AND (NOT "a blue star"@shapes-sharp):1.5'
    expect(page.locator("#expression")).to_have_text(written)
    page.click("#edit-text")
    expect(page.locator("#text")).to_have_value(written)
    page.fill("#text", "AVERAGE(a fox:2, a dog@shapes-round, NOT cat)")
    page.click("#edit-boxes")
    expect(page.locator("input[name=operator][value=average]")).to_be_checked()
    expect(page.locator("#expression")).to_have_text('AVERAGE("a fox":2, "a dog"@shapes-round, NOT "cat")')
    page.click("text=Add a component")
    expect(page.locator("#prompt-3")).to_be_focused()
    page.click("[aria-label='Remove component 2']")
    expect(page.locator("#components > li")).to_have_count(3)
    page.click("#edit-text")
    page.fill("#text", "a AND (b OR c)")
    page.click("#edit-boxes")
    expect(page.locator("#text-error")).to_contain_text("it stays text")


FLAT = [
    "a cat, sitting AND a dog",
    '"a" AND[balanced] "b" AND "c":-2',
    "a NOT b",
    "AVERAGE(a cat, dog:2)",
    r'"a \\ back\"slash\'" AND "\u00e9"',
    'a<lora:ink:0.8>@shapes OR "b"<lora:"my clay">',
    "AND[sharpness=0.2](a)",
    "OR(a, b)",
    "NOT a",
    "alone",
    "ANDROID AND 🦊 fox",
]


def test_the_page_reads_and_writes_texts_as_the_service_does(page):
    """Whatever boxes show means to the service what the text meant."""
    models = {"default_model": "shapes", "models": ["shapes", "shapes-round", "shapes-sharp"]}
    rewrite = """async (texts) => {
        const { read, write } = await import("/web/js/expression.js");
        return texts.map((text) => {
            const boxes = read(text);
            return boxes && write(boxes.components, boxes.operator, boxes).text;
        });
    }"""
    dice = random.Random(3)
    signs = "ab \\\"'(){}[]<>@:,é🦊\n"
    quoted = ["".join(dice.choices(signs, k=dice.randrange(1, 9))) for _ in range(60)]
    texts = FLAT + [grammar.format(grammar.parse(json_quoted(q), **models)) for q in quoted]
    for text, written in zip(texts, page.evaluate(rewrite, texts), strict=True):
        assert written is not None, text
        assert grammar.parse(written, **models) == grammar.parse(text, **models), text
    deep = ["a AND (b OR c)", "a XOR b", "OR[temperature=2](a, b)", "NOT[0.5] a", "a{negative: b} AND c", "a AND", "("]
    assert page.evaluate(rewrite, deep) == [None] * len(deep)


def json_quoted(prompt):
    return '"' + re.sub(r'["\\]', r"\\\g<0>", prompt) + '" AND b'


def test_cancel_ends_the_job(page, server):
    compose(page, "a red circle", "a blue star", steps=1000)
    until(page, "Number(document.querySelector('#progress').value) > 0")
    page.click("#cancel")
    job = finished(page, "cancelled")
    assert asked(server, job)["status"] == "cancelled"
    expect(page.locator("#frame-note")).to_have_text("Cancelled.")
    expect(page.locator(f"#gallery [data-job='{job}']")).to_have_attribute("data-status", "cancelled")


def photo(path, size=(64, 64)):
    """A picture that no model would draw, as a file."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def sent_with(page, action):
    """What an action makes the page send to be composed."""
    with page.expect_request("**/v1/superpose") as request:
        action()
    return json.loads(request.value.post_data)


def picture_of(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def stroke(page, points):
    """Draw over the mask; points are shares of its width and height."""
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    x, y = zip(*((box["x"] + u * box["width"], box["y"] + v * box["height"]) for u, v in points), strict=True)
    page.mouse.move(x[0], y[0])
    page.mouse.down()
    for to in zip(x[1:], y[1:], strict=True):
        page.mouse.move(*to, steps=6)
    page.mouse.up()


def test_what_is_painted_is_drawn_anew_and_the_rest_stays(page, server, tmp_path):
    source = photo(tmp_path / "photo.png")
    page.click("#from-picture > summary")
    page.set_input_files("#file", source)
    expect(page.locator("#picture-editor")).to_be_visible()
    page.fill("#brush", "20")
    stroke(page, [(0.85, 0.1), (0.85, 0.95), (0.7, 0.5)])
    page.screenshot(path=tmp_path / "mask.png", full_page=True)
    body = sent_with(page, lambda: compose(page, "a red circle", "a blue star", steps=6))
    assert np.array_equal(np.asarray(picture_of(body["image"]).convert("RGB")), pixels(source.read_bytes()))
    mask = np.asarray(picture_of(body["mask"]).convert("L"))
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[:, :32].max() == 0
    assert mask[10:55, 50:58].min() == 255
    job = finished(page)
    before, after = pixels(source.read_bytes()), pixels(drawn(server, job))
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert np.abs(after - before)[mask == 255].mean() > 10


def test_the_mask_is_edited_with_undo_erase_invert_and_the_keyboard_alone(page, tmp_path):
    page.click("#from-picture > summary")
    page.set_input_files("#file", photo(tmp_path / "photo.png", (48, 32)))
    until(page, "document.querySelector('#mask').width === 48")  # the picture is there
    page.focus("#mask")
    page.keyboard.press("Space")
    dab = opaque(page, "#mask")
    assert 0 < dab < 48 * 32 / 4
    page.keyboard.down("Space")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("Space")
    line = opaque(page, "#mask")
    assert line > dab
    page.keyboard.press("Control+z")
    assert opaque(page, "#mask") == dab
    page.keyboard.press("Control+Shift+z")
    assert opaque(page, "#mask") == line
    page.click("#invert")
    assert opaque(page, "#mask") == 48 * 32 - line
    page.click("#fill-mask")
    page.check("#tool-erase", force=True)
    stroke(page, [(0.1, 0.5), (0.9, 0.5)])
    assert 0 < opaque(page, "#mask") < 48 * 32
    body = sent_with(page, lambda: compose(page, "a red circle", "a blue star", steps=1))
    assert picture_of(body["mask"]).size == (48, 32)
    page.click("#clear-mask")
    expect(page.locator("#strength-told")).to_have_text("0.75")
    page.fill("#strength", "0.4")
    body = sent_with(page, lambda: page.click("#compose"))
    assert (body["strength"], "mask" in body) == (0.4, False)
    finished(page)


def test_a_picture_of_the_stage_or_the_clipboard_is_begun_from(page, server):
    compose(page, "a red circle", "a blue star", steps=2)
    job = finished(page)
    page.click("#use-picture")
    expect(page.locator("#picture-editor")).to_be_visible()
    body = sent_with(page, lambda: page.click("#compose"))
    assert np.array_equal(np.asarray(picture_of(body["image"]).convert("RGB")), pixels(drawn(server, job)))
    page.click("#remove-picture")
    expect(page.locator("#picture-editor")).to_be_hidden()
    paste = """(data) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
    }"""
    page.evaluate(paste, base64.b64encode(drawn(server, job)).decode())
    expect(page.locator("#picture-editor")).to_be_visible()


def test_a_file_that_is_no_picture_is_refused_in_plain_words(page, tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    page.click("#from-picture > summary")
    page.set_input_files("#file", tmp_path / "notes.png")
    expect(page.locator("#file-error")).to_contain_text("not a picture that the browser can read")


def test_the_gallery_outlives_a_reload_and_gives_settings_back(opened, server, page):
    compose(page, "a yellow triangle", "a blue star", steps=3, guidance=2.5)
    job = finished(page)
    seed = asked(server, job)["seed"]
    page.reload()
    card = page.locator(f"#gallery [data-job='{job}']")
    expect(card).to_have_attribute("data-status", "completed")
    until(page, "document.querySelector('#gallery img').naturalWidth === 64")
    expect(page.locator("#prompt-0")).to_have_value("a yellow triangle")
    page.fill("#prompt-0", "something else")
    card.locator(".card").click()
    finished(page)
    expect(page.locator("#weight-chart")).to_have_attribute("data-points", "3")
    assert str(seed) in page.text_content("#stage-facts")
    card.get_by_text("Use settings").click()
    expect(page.locator("#prompt-0")).to_have_value("a yellow triangle")
    expect(page.locator("#seed")).to_have_value(str(seed))
    expect(page.locator("#guidance")).to_have_value("2.5")
    page.click("#compose")
    until(page, f"document.querySelector('#stage').dataset.job !== '{job}'")
    assert drawn(server, finished(page)) == drawn(server, job)
    # Another browser is another caller.
    expect(opened().locator("#gallery li")).to_have_count(0)


def test_a_running_job_is_taken_up_and_cancelled_after_a_reload(page, server):
    compose(page, "a red circle", "a blue star", steps=1000)
    page.wait_for_selector("#stage[data-status=running]")
    job = page.get_attribute("#stage", "data-job")
    page.reload()
    until(page, "Number(document.querySelector('#progress').value) > 0")
    assert page.get_attribute("#stage", "data-job") == job
    page.click(f"#cancel-{job}")
    finished(page, "cancelled")
    assert asked(server, job)["status"] == "cancelled"


def test_a_phone_never_scrolls_sideways(opened, watch, tmp_path):
    watch.expected = REFUSED
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, device_scale_factor=2)

    def fits():
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

    fits()
    box = page.locator("#compose").bounding_box()
    assert box["y"] + box["height"] <= 740, "Compose is on the first screen"
    compose(page, "a red circle", "a blue star with a very-long-word-that-does-not-fit-into-a-line-of-a-phone", steps=3)
    finished(page)
    page.click("#map-0")
    page.click("#use-picture")
    expect(page.locator("#picture-editor")).to_be_visible()
    fits()
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    page.click("#edit-text")
    page.fill("#text", "a cat AND a red hat (worn:1.2) " * 5)
    page.click("#compose")
    expect(page.locator("#caret")).to_be_visible()
    fits()
    small = """() => [...document.querySelectorAll("button, a.button, select, input:not([type=range])")]
        .filter((e) => e.checkVisibility()).map((e) => [e.id || e.textContent, e.getBoundingClientRect().height])
        .filter(([, height]) => height < 24)"""
    assert page.evaluate(small) == [], "targets are at least 24 pixels high"


FOCUS = """() => {
    const styled = (element) => element ? getComputedStyle(element) : { outlineStyle: "none" };
    const rings = ({ outlineStyle, outlineWidth }) => outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
    const { activeElement: at } = document;
    const own = rings(styled(at)) && styled(at).opacity > 0.1;
    const visible = own || rings(styled(at.nextElementSibling)) || rings(styled(at.parentElement));
    return { id: at.id, tag: at.tagName, visible };
}"""


def test_the_keyboard_alone_composes_and_focus_is_always_seen(page):
    stops = []
    for _ in range(40):
        page.keyboard.press("Tab")
        stop = page.evaluate(FOCUS)
        if stop["tag"] == "BODY":
            break
        assert stop["visible"], stop
        stops.append(stop["id"])
    wanted = ["prompt-0", "model-0", "weight-0", "prompt-1", "add", "edit-text", "compose"]
    assert [stop for stop in stops if stop in wanted] == wanted
    page.evaluate("document.activeElement.blur()")
    page.reload()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt-0":
            break
    page.keyboard.type("a green square")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt-1":
            break
    page.keyboard.type("a red circle")
    body = sent_with(page, lambda: page.keyboard.press("Control+Enter"))
    assert body["expression"] == '"a green square" AND "a red circle"'
    finished(page)


def test_dark_is_the_system_s_or_the_button_s_and_is_kept(opened):
    page = opened(color_scheme="dark")
    luminance = """() => {
        const [red, green, blue] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
        return (red + green + blue) / 3;
    }"""
    assert page.evaluate(luminance) < 60
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "true")
    page.click("#theme")
    assert page.evaluate(luminance) > 200
    page.reload()
    assert page.evaluate(luminance) > 200
    expect(page.locator("#theme")).to_have_attribute("aria-pressed", "false")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_stands_in_the_way_of_anybody(opened, watch, theme, tmp_path):
    """No finding of axe-core above "moderate": as opened, with a picture and everything unfolded, with errors."""
    watch.expected = REFUSED
    page = opened(color_scheme=theme)
    page.evaluate(AXE.read_text())

    def findings():
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        return [
            (each["id"], node["target"], node["failureSummary"])
            for each in found
            if each["impact"] in {"serious", "critical"}
            for node in each["nodes"]
        ]

    assert findings() == []
    compose(page, "a red circle", "a blue star", steps=3, images=2)
    finished(page)
    page.click("#map-0")
    page.click("#use-picture")
    expect(page.locator("#picture-editor")).to_be_visible()
    page.screenshot(path=tmp_path / f"{theme}.png", full_page=True)
    assert findings() == []
    page.click("#edit-text")
    page.fill("#steps", "0")
    page.click("#compose")
    expect(page.locator("#steps-error")).to_be_visible()
    assert findings() == []
    page.fill("#steps", "2")
    page.fill("#text", "a AND (")
    page.click("#compose")
    expect(page.locator("#caret")).to_be_visible()
    page.screenshot(path=tmp_path / f"{theme}-errors.png", full_page=True)
    assert findings() == []


def test_a_service_that_is_gone_is_said_to_be_and_taken_up_again(page, watch, server):
    """The job is followed to its end over the break."""
    watch.expected = "ERR_INTERNET_DISCONNECTED"
    # Long enough that it is not done before the network is gone.
    compose(page, "a red circle", "a blue star", steps=250)
    until(page, "Number(document.querySelector('#progress').value) > 0")
    page.context.set_offline(True)
    expect(page.locator("#connection")).to_be_visible()
    page.click("#compose")
    expect(page.locator("#status")).to_contain_text("The service does not answer. Your composition is kept")
    page.context.set_offline(False)
    expect(page.locator("#connection")).to_be_hidden()
    job = finished(page)
    assert asked(server, job)["status"] == "completed"


def generate_arguments(code):
    """What Python code gives to ``client.images.generate``."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (generate,) = [call for call in calls if getattr(call.func, "attr", "") == "generate"]
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in generate.keywords}


def test_what_is_copied_draws_the_same_picture_again(opened, server, tmp_path):
    """The commands are run as they are; Python's with httpx, curl's by a shell."""
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    compose(page, 'it\'s "a red circle"', "a blue star", steps=3, negative="a dog's day")
    job = finished(page)
    wanted = drawn(server, job)

    def copied(kind):
        page.click(f"#copy-{kind}")
        expect(page.locator("#status")).to_contain_text("copied")
        return page.evaluate("navigator.clipboard.readText()")

    (tmp_path / "again.py").write_text(copied("httpx"))
    subprocess.run([sys.executable, "again.py"], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    assert (tmp_path / "composed-0.png").read_bytes() == wanted
    command = copied("curl")
    subprocess.run(["bash", "-n", "-c", command], check=True, timeout=10)
    if shutil.which("curl"):
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=60, capture_output=True)
        assert (tmp_path / "composed.png").read_bytes() == wanted
    arguments = generate_arguments(copied("openai"))
    assert arguments["prompt"] == r'"it' + "'" + r's \"a red circle\"" AND "a blue star"'
    assert arguments["extra_body"]["superdiff"]["seed"] == asked(server, job)["seed"]
    assert arguments["extra_body"]["superdiff"]["negative_prompt"] == "a dog's day"
    # A text without an operator would be a plain prompt there.
    body = {"expression": '"a fox AND"@shapes', "num_images": 2, "width": 64, "height": 32}
    openai = """async (body) => (await import("/web/js/snippets.js")).openai({ body }, 3, "http://localhost/")"""
    assert generate_arguments(page.evaluate(openai, body)) == {
        "prompt": body["expression"],
        "n": 2,
        "size": "64x32",
        "response_format": "b64_json",
        "extra_body": {"superdiff": {"expression": body["expression"], "seed": 3}},
    }


def test_a_copied_command_sends_the_picture_from_a_file(opened, server, tmp_path):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.click("#from-picture > summary")
    page.set_input_files("#file", photo(tmp_path / "picture.png"))
    compose(page, "a red circle", "a blue star", steps=3)
    job = finished(page)
    page.click("#copy-httpx")
    expect(page.locator("#status")).to_contain_text("copied")
    (tmp_path / "again.py").write_text(page.evaluate("navigator.clipboard.readText()"))
    subprocess.run([sys.executable, "again.py"], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    # The file that the page sent was written by the browser, so only what was drawn is the same.
    pictures = [Image.open(tmp_path / "composed-0.png"), Image.open(io.BytesIO(drawn(server, job)))]
    assert np.array_equal(*map(np.asarray, pictures))
    expect(page.locator("#copy-openai")).to_be_hidden()


def test_the_page_may_run_nothing_but_its_own_files(server):
    for path in ("/", "/web/js/main.js", "/web/style.css", "/web/none.js"):
        answer = httpx.get(server.url + path)
        assert answer.status_code == (404 if "none" in path else 200)
        if answer.status_code == 200:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'self'" in policy
            assert "img-src 'self' data: blob:" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
    fresh = httpx.get(server.url + "/web/style.css")
    again = httpx.get(server.url + "/web/style.css", headers={"If-None-Match": fresh.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(server.url + "/web/../page.py").status_code == 404
    assert httpx.get(server.url + "/web/%2e%2e/page.py").status_code == 404


def test_every_file_of_the_page_is_in_the_wheel():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["service"]
    packaged = {path for pattern in patterns for path in (root / "service").glob(pattern)}
    files = {path for path in (root / "service/web/static").rglob("*") if path.is_file()}
    assert {"index.html", "style.css", "main.js"} <= {path.name for path in files}
    assert files <= packaged


def test_the_documentation_loads_nothing_from_elsewhere(opened, server):
    """Swagger UI under its own policy: every operation is listed, nothing is blocked, nothing leaves the host."""
    page = opened()
    page.goto(f"{server.url}/docs")
    expect(page.locator("#operations-superpose-superpose_v1_superpose_post")).to_be_visible()
    page.locator("#operations-superpose-superpose_v1_superpose_post button").first.click()
    expect(page.locator("option[value='application/problem+json']").first).to_be_attached()
