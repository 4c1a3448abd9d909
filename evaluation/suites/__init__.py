"""The suites by name; each is a file, imported when it is wanted."""

from importlib import import_module
from typing import Final

from evaluation.suite import Suite
from pipelines.builtin.emoji.captions import CAPTIONS_FILE
from pipelines.builtin.emoji.pictures import DATA_FOLDER

PICTURE_SUITES: Final = ("prompts", "logic", "halves", "shapes", "limits", "emoji")
NAMES: Final = ("gmm", *PICTURE_SUITES, "cost")


def measurable() -> tuple[str, ...]:
    """The suites that can be run here: `emoji` needs pictures that are fetched, never committed."""
    has_pictures = (DATA_FOLDER / CAPTIONS_FILE).exists()
    return tuple(name for name in NAMES if name != "emoji" or has_pictures)


def open_suite(name: str) -> Suite:
    """The suite of that name; :class:`KeyError` for none."""
    if name not in NAMES:
        raise KeyError(f"there is no suite {name!r}; there are {', '.join(NAMES)}")
    suite: Suite = import_module(f"evaluation.suites.{name}").SUITE
    return suite
