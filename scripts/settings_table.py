"""Prints the table of settings in docs/operations.md, from the settings themselves.

python -m scripts.settings_table
"""

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from annotated_types import Ge, Gt, Le, Lt
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.settings import Settings

START: Final = "<!-- settings: python -m scripts.settings_table -->"
END: Final = "<!-- end of settings -->"
_SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def table() -> str:
    """The table, in the order of the settings."""
    lines = ["| variable | default | allowed | what it does |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        told = " ".join((field.description or "").split())
        lines.append(f"| `{name.upper()}` | {_default(name, field)} | {_allowed(field)} | {told} |")
    return "\n".join(lines)


def written(text: str) -> str:
    """The part of a document between the marks."""
    return text.split(START)[1].split(END, maxsplit=1)[0].strip()


def _default(name: str, field: FieldInfo) -> str:
    value: Any = field.get_default(call_default_factory=True)
    if value is None or value in ("", [], SecretStr("")):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_bytes"):
        size, unit = next((size, unit) for size, unit in _SIZES if value >= size and value % size == 0)
        return f"{value // size} {unit}"
    if isinstance(value, int | float):
        return f"{value:g}" if value < 1e6 else f"{value:,}"
    return f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    kind = field.annotation
    if kind is bool:
        return "true, false"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return ", ".join(kind)
    bounds = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=low):
                bounds.append(f"from {low}")
            case Gt(gt=low):
                bounds.append(f"above {low}")
            case Le(le=high):
                bounds.append(f"to {high}")
            case Lt(lt=high):
                bounds.append(f"below {high}")
    return " ".join(map(str, bounds))


def main() -> None:
    """Write the table into the document."""
    path = Path(__file__).parents[1] / "docs/operations.md"
    text = path.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    path.write_text(f"{before}{START}\n{table()}\n{END}{after}")
    print(table())


if __name__ == "__main__":
    main()
