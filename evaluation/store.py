"""Results on disk, block by block: what was measured is kept, and a run that was stopped goes on where it stopped.

    OUT/run.json                       where and from what the results come
    OUT/blocks/SCOPE/SUITE/*.json      one block: numbers, seeds, seconds, when
    OUT/blocks/SCOPE/SUITE/*.npz       its arrays and pictures, where it has some

A block's JSON is written last and whole, so that it is there only if all of it is. A folder holds the results of one
commit, so that no report mixes two.
"""

import json
import os
import platform
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.asked import Split

_ROOT: Final = Path(__file__).parents[1]


class OtherCommitError(Exception):
    """The folder holds results of another commit."""


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is measured, on which captions and seeds.

    Attributes:
        split: Which captions and seeds.
        quick: Whether a few pictures do.
        full: Whether there is time for more of what costs most; adds to what the default has.
    """

    split: Split = Split.REPORT
    quick: bool = False
    full: bool = False

    @property
    def name(self) -> str:
        """The name of its folder; a full scope goes on in that of the default."""
        return f"{self.split}-quick" if self.quick else str(self.split)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a suite that can be measured alone.

    Attributes:
        suite: Whose.
        cell: Which line or setting of its tables.
        index: Its place in the cell: that of its first picture, or of a repetition.
        work: About how much it costs, in network rows; for the progress bar.
    """

    suite: str
    cell: str
    index: int = 0
    work: float = field(default=1.0, compare=False)

    @property
    def stem(self) -> str:
        """Its files' name without the ending."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.cell.lower()).strip("-")[:60]
        return f"{slug}-{zlib.crc32(self.cell.encode()):08x}-{self.index:03}"


@dataclass(frozen=True)
class Outcome:
    """What a block gave.

    Attributes:
        numbers: JSON.
        arrays: By name; "pictures" are (B, height, width, 3) uint8, to be shown.
    """

    numbers: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Store:
    """The results of one commit in one folder, for one scope."""

    def __init__(self, folder: Path, scope: Scope) -> None:
        self.folder, self.scope = folder, scope

    def open(self, *, any_commit: bool = False) -> None:
        """Make the folder and note this run in it; :class:`OtherCommitError` if it holds another commit's results."""
        earlier = self.runs()
        now = provenance()
        others = {run["commit"] for run in earlier} - {now["commit"]}
        if others and not any_commit:
            raise OtherCommitError(
                f"{self.folder} holds results of commit {', '.join(sorted(others))}, this is {now['commit']};"
                " give another --out, or --any-commit to keep what is there"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(self.folder / "run.json", [*earlier, now | asdict(self.scope)])

    def runs(self) -> list[dict[str, Any]]:
        """Every run that has added to the folder: date, commit, machine, scope."""
        file = self.folder / "run.json"
        found: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        return found

    def has(self, block: Block) -> bool:
        """Whether it was measured."""
        return self._file(block).exists()

    def write(self, block: Block, outcome: Outcome, seconds: float) -> None:
        """Keep a block's outcome."""
        file = self._file(block)
        file.parent.mkdir(parents=True, exist_ok=True)
        if outcome.arrays:
            beside = file.with_suffix(".partial")
            with beside.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **dict(outcome.arrays))
            beside.replace(file.with_suffix(".npz"))
        record = {"cell": block.cell, "index": block.index, "seconds": seconds, "date": _now(), "commit": commit()}
        _write_json(file, record | {"numbers": outcome.numbers})

    def read(self, block: Block) -> Outcome:
        """A kept outcome, with "seconds" and "commit" among its numbers."""
        file = self._file(block)
        kept = json.loads(file.read_text())
        arrays: dict[str, NDArray[Any]] = {}
        if (packed := file.with_suffix(".npz")).exists():
            with np.load(packed, allow_pickle=False) as opened:
                arrays = {name: opened[name] for name in opened.files}
        return Outcome(kept["numbers"] | {"seconds": kept["seconds"], "commit": kept["commit"]}, arrays)

    def _file(self, block: Block) -> Path:
        return self.folder / "blocks" / self.scope.name / block.suite / f"{block.stem}.json"


def default_folder() -> Path:
    """runs/evaluation/COMMIT: the same commit goes on where it stopped, another one starts anew."""
    return Path("runs/evaluation") / commit()


@cache
def commit() -> str:
    """The short commit of the source, with a checksum of what was changed since; "unknown" outside a repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(_ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603

    head = git("rev-parse", "--short", "HEAD").strip()
    if not head:
        return "unknown"
    changed = git("diff", "HEAD", "--", "pipelines", "evaluation")
    return f"{head}-{zlib.crc32(changed.encode()):08x}" if changed else head


def provenance() -> dict[str, Any]:
    """What a reader must know to compare: date, commit, processor and cores, versions."""
    return {
        "date": _now(),
        "commit": commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_json(file: Path, value: object) -> None:
    beside = file.with_suffix(".partial-json")
    beside.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
    beside.replace(file)
