"""Photographs the page for the documents: ``make serve``, and beside it ``python -m scripts.draw_page``."""

import argparse
import os
import shutil
from typing import Final

from playwright.sync_api import Page, sync_playwright

from scripts.draw_pictures import OUT

_WAIT_MS: Final = 60_000
_EARLIER: Final = (("an octopus", "a strawberry"), ("a robot", "a teapot"), ("a lion", "a sunflower"))
_SHOWN: Final = ("a cat", "a pizza")


def compose(page: Page, prompts: tuple[str, str]) -> None:
    """Draw two prompts with the page's defaults and wait for the picture."""
    before = page.get_attribute("#stage", "data-job")
    for i, prompt in enumerate(prompts):
        page.fill(f"#prompt-{i}", prompt)
    page.click("#compose")
    page.wait_for_selector(f"#stage[data-status=completed]:not([data-job='{before}'])")


def main() -> None:
    """Compose four pictures, lay the last one's lift map over it, and save the whole page."""
    parser = argparse.ArgumentParser(prog="python -m scripts.draw_page", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of a service that runs")
    url = parser.parse_args().url
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed; scripts/install_test_tools.sh installs it")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(_WAIT_MS)
        page.goto(url)
        page.click("#settings-section > summary")
        page.fill("#seed", "0")
        page.click("#settings-section > summary")
        for prompts in (*_EARLIER, _SHOWN):
            compose(page, prompts)
        page.click("#map-1")
        page.screenshot(path=OUT / "page.png", full_page=True)
        browser.close()
    print(OUT / "page.png")


if __name__ == "__main__":
    main()
