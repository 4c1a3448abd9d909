r"""Logic over densities: the log-density of every node of an expression, and its score as a mix of the leaves' scores.

Every node has a log-density ℓ and a score that is Σ κ_c (score of child c), so a whole expression is a small program
over columns: the M leaves, then the P reference branches, then the operators, children first. Two kinds of operator
node are enough:

    soft      κ = softmax(λ ℓ_c + b_c),  ℓ = (logsumexp(λ ℓ_c + b_c) − o) / λ         λ ≠ 0 is the node's power
    linear    κ = β,                     ℓ = Σ β_c ℓ_c                                Σ β = 1

    OR         soft,   λ = T > 0, b_c the log prior odds, o = logsumexp(b): T = 1 is the mixture's own log-density
               linear, β = softmax(b), for T = 0
    AND        soft,   −λ, b_c = λ L_c for lifts L_c, o = log(number of terms): the soft minimum (Dombi's conjunction)
    NOT        linear, 1 + γ on the reference, −γ on the term
    average    linear, the weights
    product    linear, β_c on the terms and 1 − Σ β on the reference
    XOR        OR over i of AND(term i, NOT every other term), with a high T
    AtLeast    OR over the subsets of k terms of AND(subset), with a high T

The reference of a node is the mean of its leaves' reference branches: of one branch, in most requests. Log-densities
and scores here are those of the models themselves; guidance comes in where the sample is moved
(:mod:`pipelines.superposition`).

A balanced AND has no log-density. Its terms are the program's `tops`; every other expression has one top, its root.

References:
    Blohm & Garg, ICLR 2026, for AND, OR and NOT as nodes with a score and a log-density. docs/composition.md has the
    derivations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.composition import (
    DECISIVE,
    And,
    AtLeast,
    Average,
    Expression,
    Method,
    Not,
    Or,
    Path,
    Product,
    Prompt,
    Xor,
    leaves,
)


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of a program.

    Attributes:
        power: λ of a soft node; 0 for a linear one.
        terms: Column → b_c of a soft node, β_c of a linear one.
        offset: o of a soft node.
        level: The longest way down to a leaf, in nodes.
    """

    power: float
    terms: Mapping[int, float]
    offset: float
    level: int


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An expression in columns. Compared by identity, so that batches of programs can be cached.

    Attributes:
        leaves: M.
        references: P.
        branch: For each leaf its reference, 0 ≤ p < P; () where there are none.
        nodes: The operators, children first; node k is column M + P + k.
        tops: The columns that the step follows: the root, or the terms of a balanced AND.
        balanced: Whether the root is a balanced AND.
        lifts: Of the tops, in nats; zeros unless balanced.
        places: Where each written node with a log-density is in the expression → its column.
    """

    leaves: int
    references: int
    branch: tuple[int, ...]
    nodes: tuple[Node, ...]
    tops: tuple[int, ...]
    balanced: bool
    lifts: tuple[float, ...]
    places: Mapping[Path, int]

    @property
    def depth(self) -> int:
        """The longest way down from a top, in operators."""
        return max((node.level for node in self.nodes), default=0)


def compile_program(expression: Expression, branch: Sequence[int]) -> Program:
    """The program of an expression.

    Args:
        expression: What to compose.
        branch: For each leaf its reference, counted from 0 without gaps; empty where no reference is evaluated, which
            expressions with NOT, XOR or product do not allow.
    """
    compiler = _Compiler(len(leaves(expression)), branch)
    tops, lifts, balanced = compiler.root(expression)
    return Program(
        leaves=compiler.leaves,
        references=compiler.references,
        branch=tuple(branch),
        nodes=tuple(compiler.nodes),
        tops=tops,
        balanced=balanced,
        lifts=lifts,
        places=compiler.places,
    )


class _Compiler:
    """Writes nodes, children first; a term that an operator uses several times is written once."""

    def __init__(self, count: int, branch: Sequence[int]) -> None:
        self.leaves, self.references, self.branch = count, max(branch, default=-1) + 1, branch
        self.nodes: list[Node] = []
        self.places: dict[Path, int] = {}
        self._read = 0

    def root(self, expression: Expression) -> tuple[tuple[int, ...], tuple[float, ...], bool]:
        """Write a whole expression; the tops, their lifts, whether it is a balanced AND."""
        match expression:
            case And(method=Method.BALANCED, terms=terms, lifts=lifts):
                tops = tuple(self.visit(term, ("terms", i)) for i, term in enumerate(terms))
                return tops, lifts or (0.0,) * len(tops), True
        return (self.visit(expression, ()),), (0.0,), False

    def visit(self, expression: Expression, path: Path) -> int:
        """Write an expression; its column."""
        first = self._read
        if isinstance(expression, Prompt):
            self._read += 1
            column = first
        else:
            terms = [self.visit(term, (*path, "terms", i)) for i, term in enumerate(expression.terms)]
            column = self._operator(expression, terms, self._reference(range(first, self._read)))
        self.places[path] = column
        return column

    def _operator(  # noqa: PLR0911 (one case an operator)
        self, expression: Expression, terms: list[int], reference: Mapping[int, float]
    ) -> int:
        match expression:
            case Or(temperature=temperature, biases=biases):
                return self._or(terms, biases, temperature)
            case And(lifts=lifts, sharpness=sharpness):
                return self._and(terms, lifts, sharpness)
            case Not(scale=scale):
                return self._not(terms[0], scale, reference)
            case Average(weights=weights):
                total = sum(weights) if weights else len(terms)
                return self._linear([(c, w / total) for c, w in zip(terms, weights or [1.0] * len(terms), strict=True)])
            case Product(weights=weights):
                betas = weights or (1.0,) * len(terms)
                rest = [(r, (1 - sum(betas)) * share) for r, share in reference.items()]
                return self._linear([*zip(terms, betas, strict=True), *rest])
            case Xor():
                return self._xor(expression, terms)
            case AtLeast(subsets=subsets, sharpness=sharpness):
                return self._or([self._and([terms[i] for i in some], (), sharpness) for some in subsets], (), DECISIVE)
        raise TypeError(f"no case for {type(expression).__name__}")

    def _xor(self, xor: Xor, terms: Sequence[int]) -> int:
        # Each term is refused by its own leaves' reference.
        share = xor.scale / (len(terms) - 1)
        refused = [self._not(term, share, self._beneath(term)) for term in terms]
        cases = [
            self._and([term, *(r for j, r in enumerate(refused) if j != i)], (), xor.sharpness)
            for i, term in enumerate(terms)
        ]
        # A case's bias counts in the same nats as its log-density, which the temperature multiplies.
        return self._or(cases, [DECISIVE * bias for bias in xor.biases], DECISIVE)

    def _not(self, term: int, scale: float, reference: Mapping[int, float]) -> int:
        return self._linear([*((column, (1 + scale) * share) for column, share in reference.items()), (term, -scale)])

    def _or(self, terms: Sequence[int], biases: Sequence[float], temperature: float) -> int:
        if len(terms) == 1:  # whatever its bias: the odds of one term are even
            return terms[0]
        biases = biases or [0.0] * len(terms)
        highest = max(biases)
        powers = [math.exp(bias - highest) for bias in biases]
        if temperature == 0:
            return self._linear([(c, p / sum(powers)) for c, p in zip(terms, powers, strict=True)])
        return self._write(temperature, list(zip(terms, biases, strict=True)), highest + math.log(sum(powers)))

    def _and(self, terms: Sequence[int], lifts: Sequence[float], sharpness: float) -> int:
        if len(terms) == 1 and not any(lifts):
            return terms[0]
        behind = [(c, sharpness * lift) for c, lift in zip(terms, lifts or [0.0] * len(terms), strict=True)]
        return self._write(-sharpness, behind, math.log(len(terms)))

    def _linear(self, terms: Sequence[tuple[int, float]]) -> int:
        return self._write(0.0, terms, 0.0)

    def _write(self, power: float, terms: Sequence[tuple[int, float]], offset: float) -> int:
        merged: dict[int, float] = {}
        for column, number in terms:
            merged[column] = merged.get(column, 0.0) + number
        start = self.leaves + self.references
        level = 1 + max(self.nodes[c - start].level if c >= start else 0 for c in merged)
        self.nodes.append(Node(power, merged, offset, level))
        return start + len(self.nodes) - 1

    def _reference(self, occurrences: Sequence[int]) -> dict[int, float]:
        """The mean of the reference branches of some leaves, by column."""
        shares: dict[int, float] = {}
        for leaf in occurrences if self.branch else ():
            column = self.leaves + self.branch[leaf]
            shares[column] = shares.get(column, 0.0) + 1 / len(occurrences)
        return shares

    def _beneath(self, column: int) -> dict[int, float]:
        """The reference of what a column stands for."""
        return self._reference(sorted(self._leaves_of(column)))

    def _leaves_of(self, column: int) -> set[int]:
        if column < self.leaves:
            return {column}
        if column < self.leaves + self.references:
            return set()
        return set().union(*map(self._leaves_of, self.nodes[column - self.leaves - self.references].terms))


@dataclass(frozen=True, slots=True)
class Mixing:
    """The programs of B samples as tensors, padded to M leaves, P references, I operators and C tops; float64.

    Columns are N = M + P + I.

    Attributes:
        depth: Of the deepest program.
        all_soft: Whether all I are soft nodes, in every sample: none linear, no padding.
        power: (B, I) λ, 0 for linear nodes and padding.
        inverse: (B, I) 1/λ of soft nodes, else 0.
        bias: (B, I, N) b_c, −∞ where a column is not a term; zeros for linear nodes and padding.
        linear: (B, I, N) β_c of linear nodes, else 0.
        offset: (B, I) o.
        tops: (B, C, N) one-hot; zero lines in padding.
    """

    depth: int
    all_soft: bool
    power: Tensor
    inverse: Tensor
    bias: Tensor
    linear: Tensor
    offset: Tensor
    tops: Tensor

    @property
    def width(self) -> int:
        """M + P, the columns that are not operators."""
        return self.bias.shape[2] - self.bias.shape[1]

    @classmethod
    def join(cls, programs: Sequence[tuple[Program, int]], device: torch.device | str = "cpu") -> Self:
        """The programs of a batch.

        Args:
            programs: Each with its number of samples.
            device: Where the tensors go.
        """
        m = max(program.leaves for program, _ in programs)
        p = max(program.references for program, _ in programs)
        i = max(len(program.nodes) for program, _ in programs)
        c = max(len(program.tops) for program, _ in programs)
        parts = [_tabulate(program, m, p, i, c) for program, _ in programs]
        counts = [samples for _, samples in programs]
        arrays = (np.repeat(np.stack(each), counts, axis=0) for each in zip(*parts, strict=True))
        tensors = [torch.from_numpy(array).to(device) for array in arrays]
        power, bias, linear, offset, tops = tensors
        soft = power != 0
        inverse = torch.where(soft, 1 / torch.where(soft, power, 1.0), 0.0)
        depth = max(program.depth for program, _ in programs)
        all_soft = all(power.all() for power, *_ in parts)
        return cls(depth, all_soft, power, inverse, bias, linear, offset, tops)


def _tabulate(program: Program, m: int, p: int, i: int, c: int) -> tuple[NDArray[np.float64], ...]:
    """One program's power, bias, linear, offset and tops at a given width."""
    n = m + p + i
    starts = (0, m, m + p)

    def column(own: int) -> int:
        if own < program.leaves:
            return starts[0] + own
        if own < program.leaves + program.references:
            return starts[1] + own - program.leaves
        return starts[2] + own - program.leaves - program.references

    power, offset, tops = np.zeros(i), np.zeros(i), np.zeros((c, n))
    bias, linear = np.zeros((i, n)), np.zeros((i, n))
    for k, node in enumerate(program.nodes):
        power[k], offset[k] = node.power, node.offset
        if node.power:
            bias[k] = -np.inf
        for own, number in node.terms.items():
            (bias if node.power else linear)[k, column(own)] = number
    for k, own in enumerate(program.tops):
        tops[k, column(own)] = 1
    return power, bias, linear, offset, tops


def evaluate_nodes(mixing: Mixing, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """The log-densities of all columns, and the operators' weights over their terms.

    Args:
        mixing: B samples.
        log_q: (B, M + P) log-densities of the leaves and the references, in nats.

    Returns:
        ℓ, (B, N); κ, (B, I, N). In padding both are 0.
    """
    width, power = mixing.width, mixing.power.unsqueeze(2)
    columns = functional.pad(log_q, (0, mixing.power.shape[1]))
    powers = total = mixing.bias
    # Each pass is right for one level more; no pass reads anything that is not finite. These are the step's smallest
    # tensors, so what counts is how few operations there are.
    for _ in range(mixing.depth):
        scaled = torch.addcmul(mixing.bias, power, columns.unsqueeze(1))
        # torch.logsumexp also takes care of lines that are −∞ throughout, which there are none of.
        highest = scaled.amax(2, keepdim=True)
        powers = (scaled - highest).exp_()
        total = powers.sum(2, keepdim=True)
        values = (total.log().add_(highest).squeeze(2) - mixing.offset) * mixing.inverse
        if not mixing.all_soft:
            values = torch.baddbmm(values.unsqueeze(2), mixing.linear, columns.unsqueeze(2)).squeeze(2)
        columns[:, width:] = values
    weights = powers / total
    return columns, weights if mixing.all_soft else torch.where(power != 0, weights, mixing.linear)


def unfold(mixing: Mixing, weights: Tensor) -> Tensor:
    """The scores of the tops as mixes of the leaves' and references' scores: (B, C, M + P), each line sums to 1.

    Args:
        mixing: B samples.
        weights: (B, I, N) κ of :func:`evaluate_nodes`.
    """
    width = mixing.width
    rows, left = mixing.tops[:, :, :width], mixing.tops[:, :, width:]
    for _ in range(mixing.depth):
        down = torch.bmm(left, weights)
        rows, left = rows + down[:, :, :width], down[:, :, width:]
    return rows


def node_log_densities(program: Program, log_q: Tensor) -> dict[Path, Tensor]:
    """Where each written node is → its log-density, (B,) in nats.

    Args:
        program: Of a request.
        log_q: (B, M + P) of its leaves and references.
    """
    columns, _ = evaluate_nodes(Mixing.join([(program, len(log_q))], log_q.device), log_q)
    return {path: columns[:, column] for path, column in program.places.items()}
