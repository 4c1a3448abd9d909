"""The suites by name; each is a file, imported when it is wanted."""

from importlib import import_module
from typing import Final

from evaluation.suite import Suite

PICTURE_SUITES: Final = ("prompts", "logic", "halves", "shapes", "limits")
NAMES: Final = ("gmm", *PICTURE_SUITES, "cost")


def open_suite(name: str) -> Suite:
    """The suite of that name; :class:`KeyError` for none."""
    if name not in NAMES:
        raise KeyError(f"there is no suite {name!r}; there are {', '.join(NAMES)}")
    suite: Suite = import_module(f"evaluation.suites.{name}").SUITE
    return suite
