"""What was found, written out: one JSON, one HTML page, Markdown tables for the documents."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from evaluation.findings import Cell, Chart, Section, Table, text_of, value_of
from evaluation.statistics import Rate
from evaluation.store import Scope

_SCALE = 2


def as_json(sections: Sequence[Section], runs: Sequence[Mapping[str, Any]], scope: Scope) -> dict[str, Any]:
    """Every table with its numbers and intervals, and where they come from."""
    return {
        "scope": scope.name,
        "runs": list(runs),
        "suites": {
            section.suite: [
                {
                    "table": part.title,
                    "note": part.note,
                    "rows": [
                        {"name": name, **dict(zip(part.columns, map(value_of, cells), strict=True))}
                        for name, cells in part.rows.items()
                    ],
                }
                for part in section.parts
                if isinstance(part, Table)
            ]
            for section in sections
        },
    }


def as_markdown(sections: Sequence[Section]) -> str:
    """The tables, as they stand in documents."""
    lines = []
    for section in sections:
        lines += [f"## {section.title}", "", section.text, ""]
        for table in (part for part in section.parts if isinstance(part, Table)):
            lines += [f"### {table.title}", "", *_markdown_rows(table), ""]
            lines += [table.note, ""] if table.note else []
    return "\n".join(lines).rstrip() + "\n"


def _markdown_rows(table: Table) -> list[str]:
    rows = [["", *table.columns], ["---"] * (len(table.columns) + 1)]
    for name, cells in table.rows.items():
        texts = [text_of(cell) for cell in cells]
        best = _best_of(table)
        rows.append(
            [name, *(f"**{t}**" if (name, c) in best else t for t, c in zip(texts, table.columns, strict=True))]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def as_html(sections: Sequence[Section], runs: Sequence[Mapping[str, Any]], scope: Scope) -> str:
    """One page with everything in it: nothing is fetched from anywhere."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(kind=lambda part: type(part).__name__, picture=_picture, bar=_bar, chart=_chart)
    template = environment.get_template("page.html.jinja")
    return template.render(sections=sections, runs=runs, scope=scope, text_of=text_of, best_of=_best_of)


def write(folder: Path, sections: Sequence[Section], runs: Sequence[Mapping[str, Any]], scope: Scope) -> list[Path]:
    """Write report.json, report.html and tables.md of a scope into the folder; their paths."""
    numbers = json.dumps(as_json(sections, runs, scope), ensure_ascii=False, indent=1) + "\n"
    files = {
        f"{scope.name}.json": numbers,
        f"{scope.name}.html": as_html(sections, runs, scope),
        f"{scope.name}.md": as_markdown(sections),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def _best_of(table: Table) -> set[tuple[str, str]]:
    """The cells that are set off: of each column named best the highest rate."""
    found = set()
    for column in table.best:
        at = list(table.columns).index(column)
        values = {name: cell.value for name, cells in table.rows.items() if isinstance(cell := cells[at], Rate)}
        if values:
            found.add((max(values, key=lambda name: values[name]), column))
    return found


def _bar(cell: Cell) -> dict[str, float] | None:
    """Where a rate's bar ends and its interval lies, in per cent of the cell; None for other cells."""
    if not isinstance(cell, Rate):
        return None
    low, high = cell.interval
    return {"value": 100 * cell.value, "low": 100 * low, "width": 100 * (high - low)}


def _chart(part: Chart) -> Markup:
    from evaluation import plots

    return Markup(plots.draw(part))  # noqa: S704 - it is drawn here, of numbers and of names that the drawing escapes


def _picture(pixels: NDArray[np.uint8]) -> str:
    """A picture as a data address, enlarged."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    larger = image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)
    larger.save(stream, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
