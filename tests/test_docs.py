"""What the Markdown files point to exists: files, headings, modules and targets of make."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MADE = {"build", "dist", "node_modules", "runs"}
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in MADE]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in folder.rglob("*.md"))])
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
MODULES = {"benchmarks", "evaluation", "pipelines", "scripts", "service"}


def anchors(path):
    """The headings' anchors: lower case, hyphens for spaces, no other punctuation."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", without_code(text))


def test_there_are_documents_with_links():
    assert {"README.md", "docs/cli.md", "pipelines/builtin/MODEL_CARD.md"} <= set(NAMES)
    assert len(links((ROOT / "README.md").read_text())) > 20


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_relative_links_lead_somewhere(path):
    for link in (written or image for written, image in links(path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_commands_exist(path):
    text = path.read_text()
    for module in re.findall(r"python -m ([\w.]+\w)", text):
        file = ROOT / module.replace(".", "/")
        if module.split(".")[0] in MODULES and module != "benchmarks.NAME":
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), f"python -m {module}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets
