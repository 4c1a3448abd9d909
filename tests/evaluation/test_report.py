"""The report says what was measured, the same in all its forms, and needs nothing from anywhere."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation import plots
from evaluation.findings import Chart, Gallery, Point, Section, Table, text_of
from evaluation.report import as_html, as_json, as_markdown, write
from evaluation.statistics import Estimate, Rate
from evaluation.store import Scope, provenance

RUNS = [provenance() | {"split": "report", "quick": False}]


@pytest.fixture
def sections():
    rows = {
        "joint <b>": [Rate(9, 10), 1.5, None],
        "soft AND": [Rate(7, 10), 2, Estimate(0.1, -0.1, 0.3, 10, percent=True)],
    }
    table = Table("Both there", ["all there", "cost", "difference"], rows, note="Paired.", best=["all there"])
    curves = {"one": [Point(10, 0.5, 0.4, 0.6), Point(100, 0.7, 0.6, 0.8)], "two": [Point(30, 0.6, 0.5, 0.7)]}
    chart = Chart("By cost", "rows", "rate", curves, log_x=True, percent=True, lines={"floor": 0.3})
    pictures = {"joint <b>": np.full((2, 4, 4, 3), 200, np.uint8)}
    return [Section("prompts", "Prompts", "What & why.", [table, chart, Gallery("Pictures", pictures, ["a & b", "c"])])]


class Page(HTMLParser):
    """Collects tags, texts and addresses, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_is_whole_and_fetches_nothing(sections):
    html = as_html(sections, RUNS, Scope())
    page = Page()
    page.feed(html)
    assert not page.open
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|<script", html)
    assert page.tags.count("img") == 2
    assert page.tags.count("svg") == 1
    assert "joint <b>" in page.texts
    assert RUNS[0]["commit"] in html
    assert "light dark" in html


def test_a_quick_run_and_mixed_commits_say_so(sections):
    assert "quick run" in as_html(sections, RUNS, Scope(quick=True))
    assert "quick run" not in as_html(sections, RUNS, Scope())
    assert "several commits" in as_html(sections, [*RUNS, RUNS[0] | {"commit": "other"}], Scope())


def test_all_forms_tell_the_same_numbers(sections):
    (line, other) = as_json(sections, RUNS, Scope())["suites"]["prompts"][0]["rows"]
    assert line["all there"] == pytest.approx(
        {"value": 0.9, "low": 0.596, "high": 0.982, "hits": 9, "trials": 10}, abs=1e-3
    )
    assert other["difference"] == {"value": 0.1, "low": -0.1, "high": 0.3, "count": 10}
    markdown = as_markdown(sections)
    assert "| joint <b> | **90.0 % (59.6–98.2)** | 1.5 |  |" in markdown
    assert "| soft AND | 70.0 % (39.7–89.2) | 2 | +10.0 (-10.0 to +30.0) |" in markdown
    html = as_html(sections, RUNS, Scope())
    assert "90.0 % (59.6–98.2)" in html
    assert "+10.0 (-10.0 to +30.0)" in html


def test_charts_are_svg_of_the_pages_own_ink(sections):
    svg = plots.draw(sections[0].parts[1])
    root = ET.fromstring(svg)  # noqa: S314 - drawn here
    assert root.tag.endswith("svg")
    assert "height" not in root.attrib
    assert "viewBox" in root.attrib
    assert "currentColor" in svg
    texts = "".join(root.itertext())
    for word in ("one", "two", "floor", "rows", "rate", "60%"):
        assert word in texts
    assert plots.draw(sections[0].parts[1]) == svg


def test_names_cannot_break_the_drawing():
    svg = plots.draw(Chart("x", "a & b", "<y>", {"<b>&": [Point(1, 1, 1, 1)]}))
    assert "<b>&" in "".join(ET.fromstring(svg).itertext())  # noqa: S314 - drawn here


def test_files_are_named_after_the_scope(sections, tmp_path):
    files = write(tmp_path, sections, RUNS, Scope(quick=True))
    assert [file.name for file in files] == ["report-quick.json", "report-quick.html", "report-quick.md"]
    assert all(file.read_text() for file in files)


@pytest.mark.parametrize(
    ("cell", "text"), [(None, ""), (3, "3"), (0.12345, "0.123"), (1234.5, "1234"), ("yes", "yes"), (True, "True")]
)
def test_cells_as_people_read_them(cell, text):
    assert text_of(cell) == text
