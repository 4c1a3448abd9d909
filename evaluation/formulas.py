"""Boolean formulas over captions: what a picture was asked to satisfy, as the judges understand it.

    Formula = Atom | Negation | Conjunction | Disjunction | Cardinality

They know nothing of the product's expressions, so that a fault there cannot hide in here.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Atom:
    """True where the picture shows what the caption names."""

    caption: str

    def holds(self, shows: Callable[[str], bool]) -> bool:
        """Whether it is true of a picture; ``shows`` is the truth of each caption."""
        return shows(self.caption)

    def __str__(self) -> str:
        return f'"{self.caption}"'


@dataclass(frozen=True, slots=True)
class Negation:
    """NOT: true where the formula is false."""

    term: "Formula"

    def holds(self, shows: Callable[[str], bool]) -> bool:
        """As :meth:`Atom.holds`."""
        return not self.term.holds(shows)

    def __str__(self) -> str:
        return f"NOT {self.term}"


@dataclass(frozen=True, slots=True)
class Conjunction:
    """AND: true where every term is."""

    terms: tuple["Formula", ...]

    def holds(self, shows: Callable[[str], bool]) -> bool:
        """As :meth:`Atom.holds`."""
        return all(term.holds(shows) for term in self.terms)

    def __str__(self) -> str:
        return " AND ".join(_bracketed(term) for term in self.terms)


@dataclass(frozen=True, slots=True)
class Disjunction:
    """OR: true where at least one term is."""

    terms: tuple["Formula", ...]

    def holds(self, shows: Callable[[str], bool]) -> bool:
        """As :meth:`Atom.holds`."""
        return any(term.holds(shows) for term in self.terms)

    def __str__(self) -> str:
        return " OR ".join(_bracketed(term) for term in self.terms)


@dataclass(frozen=True, slots=True)
class Cardinality:
    """True where at least ``least`` and at most ``most`` terms are: XOR of two is (1, 1)."""

    terms: tuple["Formula", ...]
    least: int
    most: int

    def holds(self, shows: Callable[[str], bool]) -> bool:
        """As :meth:`Atom.holds`."""
        return self.least <= sum(term.holds(shows) for term in self.terms) <= self.most

    def __str__(self) -> str:
        if len(self.terms) == 2 and self.least == self.most == 1:
            return " XOR ".join(_bracketed(term) for term in self.terms)
        bounds = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        return f"{bounds} OF ({', '.join(map(str, self.terms))})"


Formula = Atom | Negation | Conjunction | Disjunction | Cardinality


def atoms(formula: Formula) -> tuple[str, ...]:
    """The captions of a formula, in the order in which they are written."""
    match formula:
        case Atom(caption):
            return (caption,)
        case Negation(term):
            return atoms(term)
        case _:
            return tuple(caption for term in formula.terms for caption in atoms(term))


def _bracketed(term: Formula) -> str:
    return str(term) if isinstance(term, Atom | Negation) else f"({term})"
