"""What documents say of settings and routes is what there is."""

import re
from pathlib import Path

from scripts.settings_table import table, written
from service.settings import Settings

OPERATIONS = (Path(__file__).parents[1] / "docs/operations.md").read_text()


def test_the_table_of_settings_is_what_the_script_prints():
    """python -m scripts.settings_table writes it."""
    assert written(OPERATIONS) == table()


def test_every_setting_says_what_it_is_for():
    assert all((field.description or "").endswith(".") for field in Settings.model_fields.values())
    assert len(table().splitlines()) == 2 + len(Settings.model_fields)


def test_no_variable_is_named_that_is_no_setting():
    named = set(re.findall(r"SUPERDIFF_([A-Z_]+)", OPERATIONS)) - {"KEY", "URL"}
    assert named <= {name.upper() for name in Settings.model_fields}
