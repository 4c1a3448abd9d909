"""What all other suites' ways cost: network rows and seconds a picture, as they were run."""

from collections import defaultdict
from typing import Final

from evaluation.findings import Cell, Section, Table
from evaluation.store import Block, Outcome, Scope
from evaluation.suite import Bench, Results


class Cost:
    """The suite: the other suites' blocks of pictures, read for their cost."""

    name = "cost"
    needs: tuple[str, ...] = ()

    def blocks(self, scope: Scope) -> list[Block]:
        """All pictures that any suite draws."""
        from evaluation.suites import PICTURE_SUITES, measurable, open_suite

        names = [name for name in measurable() if name in PICTURE_SUITES]
        return [block for name in names for block in open_suite(name).blocks(scope)]

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """Never asked for: each block is measured by the suite that it names."""
        from evaluation.suites import open_suite

        return open_suite(block.suite).measure(block, scope, bench)

    def section(self, results: Results, scope: Scope) -> Section:
        """As :meth:`evaluation.suite.Suite.section`."""
        pictures: dict[tuple[str, str], int] = defaultdict(int)
        rows: dict[tuple[str, str], float] = defaultdict(float)
        seconds: dict[tuple[str, str], float] = defaultdict(float)
        for block, outcome in results.items():
            key, count = (block.suite, block.cell), len(outcome.numbers["seeds"])
            pictures[key] += count
            rows[key] += max(line["rows"] for line in outcome.numbers["lines"].values()) * count
            seconds[key] += outcome.numbers["seconds"]
        tables = []
        for suite in dict.fromkeys(suite for suite, _ in pictures):
            keys = [key for key in pictures if key[0] == suite]
            lines: dict[str, list[Cell]] = {
                cell: [
                    pictures[s, cell],
                    round(rows[s, cell] / pictures[s, cell]),
                    seconds[s, cell] / pictures[s, cell],
                ]
                for s, cell in keys
            }
            total: list[Cell] = [sum(pictures[k] for k in keys), None, None]
            lines["all"] = [*total[:2], sum(seconds[k] for k in keys) / sum(pictures[k] for k in keys)]
            note = f"{sum(seconds[k] for k in keys) / 60:.1f} minutes of one core in all."
            tables.append(Table(suite, ["pictures", "rows a picture", "seconds a picture"], lines, note))
        text = (
            "Rows are counted as the networks compute them. Seconds are of processor time, one thread a process, with"
            " decoding and judging; what else the machine did adds little, but is not nothing."
        )
        return Section(self.name, "Cost", text, tables)


SUITE: Final = Cost()
