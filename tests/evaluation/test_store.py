"""Results are kept block by block: a run that was stopped goes on, and never measures a block twice."""

import json
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from evaluation import runner, store
from evaluation.findings import Section, Table
from evaluation.store import Block, OtherCommitError, Outcome, Scope, Store


class Counting:
    """A suite of five blocks that counts how often each is measured, and stops the run at one of them."""

    name = "gmm"
    needs = ()

    def __init__(self, stop_at=None):
        self.measured, self.stop_at = [], stop_at

    def blocks(self, scope):
        return [Block("gmm", f"line {i % 2}", i // 2, 10.0) for i in range(5)]

    def measure(self, block, scope, bench):
        if len(self.measured) == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(block)
        return Outcome({"value": block.index, "seeds": [1]}, {"pictures": np.full((1, 2, 2, 3), block.index, np.uint8)})

    def section(self, results, scope):
        rows = {block.stem: [outcome.numbers["value"]] for block, outcome in results.items()}
        return Section("gmm", "Counting", "", [Table("numbers", ["value"], rows)])


@pytest.fixture
def opened(tmp_path):
    kept = Store(tmp_path / "out", Scope(quick=True))
    kept.open()
    return kept


def test_a_stopped_run_goes_on_where_it_stopped(opened, monkeypatch):
    first = Counting(stop_at=3)
    monkeypatch.setattr(runner, "open_suite", lambda _: first)
    with pytest.raises(KeyboardInterrupt):
        runner.run(["gmm"], opened)
    assert len(first.measured) == 3
    second = Counting()
    monkeypatch.setattr(runner, "open_suite", lambda _: second)
    runner.run(["gmm"], opened)
    assert sorted(b.stem for b in first.measured + second.measured) == sorted(b.stem for b in second.blocks(None))
    (section,) = runner.sections(["gmm"], opened)
    assert len(section.parts[0].rows) == 5
    # Named twice, and all there already.
    runner.run(["gmm", "gmm"], opened)
    assert len(second.measured) == 2


def test_a_block_of_two_suites_is_measured_once(opened, monkeypatch):
    suite = Counting()
    monkeypatch.setattr(runner, "open_suite", lambda _: suite)
    runner.run(["gmm", "cost"], opened)
    assert len(suite.measured) == 5


def test_a_block_comes_back_as_it_was(opened):
    block = Block("gmm", "OR, D 2", 1)
    outcome = Outcome({"rate": 0.1, "seeds": [1, 2]}, {"features": np.arange(6.0).reshape(2, 3)})
    assert not opened.has(block)
    opened.write(block, outcome, 1.5)
    again = opened.read(block)
    assert again.numbers["rate"] == 0.1
    assert again.numbers["seconds"] == 1.5
    assert again.numbers["commit"] == store.commit()
    np.testing.assert_array_equal(again.arrays["features"], outcome.arrays["features"])


def test_a_block_that_was_being_written_is_not_there(opened):
    """A stop between the arrays and the numbers leaves arrays alone: the block is measured anew."""
    block = Block("gmm", "OR", 0)
    opened.write(block, Outcome({}, {"x": np.zeros(2)}), 1.0)
    (opened.folder / "blocks/report-quick/gmm" / f"{block.stem}.json").unlink()
    assert not opened.has(block)


def test_scopes_are_kept_apart(opened):
    block = Block("gmm", "OR", 0)
    opened.write(block, Outcome({}), 1.0)
    for scope in (Scope(), Scope(store.Split.TUNE, quick=True)):
        assert not Store(opened.folder, scope).has(block)


def test_lines_with_like_names_have_files_of_their_own():
    stems = {Block("gmm", cell).stem for cell in ("AND, λ = 0.1", "AND, λ = 0,1", "AND λ 0.1", "and, λ = 0.1")}
    assert len(stems) == 4


def test_results_of_another_commit_are_refused(opened, monkeypatch):
    monkeypatch.setattr(store, "commit", lambda: "another")
    with pytest.raises(OtherCommitError, match="give another --out"):
        opened.open()
    opened.open(any_commit=True)
    assert len(opened.runs()) == 2


def test_a_run_tells_where_it_comes_from(opened):
    (run,) = opened.runs()
    assert {"date", "commit", "processor", "cores", "torch", "python", "split", "quick"} <= set(run)


def test_a_killed_command_goes_on(tmp_path):
    """The real thing: the command's own process is killed in the middle, and started again."""
    command = [sys.executable, "-m", "evaluation", "gmm", "--quick", "--out", str(tmp_path), "--workers", "2"]
    blocks = tmp_path / "blocks/report-quick/gmm"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not blocks.exists() or len(list(blocks.glob("*.json"))) < 3):
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    # None of them is left to compute for nobody.
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    before = {file: file.stat().st_mtime_ns for file in blocks.glob("*.json")}
    assert len(before) >= 3
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = {file: file.stat().st_mtime_ns for file in blocks.glob("*.json")}
    assert len(after) > len(before)
    assert before.items() <= after.items()
    report = json.loads((tmp_path / "report-quick.json").read_text())
    assert len(report["runs"]) == 2
    assert str(tmp_path / "report-quick.html") in told
