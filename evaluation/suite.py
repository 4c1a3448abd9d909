"""What a suite is, and what its blocks are measured with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from evaluation.findings import Section
from evaluation.store import Block, Outcome, Scope
from pipelines.builtin.emoji.pictures import DATA_FOLDER
from pipelines.catalog import Catalog
from pipelines.entry import BUILTIN_FOLDER

if TYPE_CHECKING:
    from evaluation.judges.emoji import EmojiJudge
    from evaluation.judges.features import Classifier

Results = Mapping[Block, Outcome]


class Bench:
    """What blocks are measured with, imported and loaded when it is first wanted: mixtures want nothing of it.

    Args:
        folder: The run's; the classifier's weights are kept there.
        quick: Whether the classifier is trained only so long as to be one.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self._folder, self._quick = folder, quick

    @cached_property
    def catalog(self) -> Catalog:
        """The builtin models."""
        return Catalog.builtin("cpu")

    @cached_property
    def classifier(self) -> "Classifier":
        """Whose features tell pictures apart."""
        from evaluation.judges.features import Training, load_classifier

        training = Training(steps=40, batch=32, scenes=1000) if self._quick else Training()
        return load_classifier(self._folder, training)

    @cached_property
    def emoji_judge(self) -> "EmojiJudge":
        """Who tells what a picture of `emoji` shows; learns from pictures that ``scripts.fetch_emoji`` has fetched."""
        from diffusers import AutoencoderKL

        from evaluation.judges.emoji import PLAN, train_judge
        from pipelines.builtin.train import load_part

        plan = replace(PLAN, steps=3, batch=4) if self._quick else PLAN
        autoencoder = load_part(AutoencoderKL, BUILTIN_FOLDER / "emoji", "vae")
        return train_judge(DATA_FOLDER, autoencoder, self._folder / "emoji-judge.pt", plan=plan)


class Suite(Protocol):
    """Something that is measured.

    Attributes:
        name: By which it is called.
        needs: Attributes of :class:`Bench` that its blocks want, which are trained before they start.
    """

    name: str
    needs: tuple[str, ...]

    def blocks(self, scope: Scope) -> list[Block]:
        """All there is to measure."""
        ...

    def measure(self, block: Block, scope: Scope, bench: Bench) -> Outcome:
        """One block, alone; the same numbers whatever else is measured."""
        ...

    def section(self, results: Results, scope: Scope) -> Section:
        """What the blocks tell, all of them or those that there are."""
        ...


def cell_of(results: Results, cell: str) -> Sequence[Outcome]:
    """The outcomes of a cell, in the order of its blocks."""
    return [outcome for block, outcome in sorted(results.items(), key=lambda item: item[0].index) if block.cell == cell]
