"""Which networks a request asks for what, and by which rule their answers are superposed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pipelines.composition import Adapters, And, Average, Expression, Or, Product, Prompt, leaves
from pipelines.model import Guidance, Model
from pipelines.params import SamplingParams
from pipelines.superposition import Operator, Rule


@dataclass(frozen=True, slots=True)
class Row:
    """What a network is asked: a text to a model that wears some LoRAs."""

    text: str
    model: str
    adapters: Adapters = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Which networks a request asks, and where the answers go.

    Attributes:
        rows: The distinct ones: what is computed for every image at every step.
        slots: For each of the M components, then of the P unconditional branches, the index of its row.
    """

    rows: tuple[Row, ...]
    slots: tuple[int, ...]


def lay_out(expression: Expression, params: SamplingParams, models: Mapping[str, Model]) -> tuple[Layout, list[int]]:
    """The layout of a request, and for each component the index of its unconditional branch (empty without any).

    The branches are the components' models, with their LoRAs, under the negative prompt; they are left out where
    guidance 1 makes them vanish. A model without classifier-free guidance is its own branch: then nothing leads it
    away, and no row is added.
    """
    terms = leaves(expression)
    own = [Row(term.text, term.model, term.adapters) for term in terms]
    away = []
    if params.guidance_scale != 1 or isinstance(expression, Product):
        for term, row in zip(terms, own, strict=True):
            led = models[term.model].card.guidance is Guidance.CLASSIFIER_FREE
            text = params.negative_prompt if term.negative is None else term.negative
            away.append(Row(text, term.model, term.adapters) if led else row)
    branches = list(dict.fromkeys(away))
    rows = tuple(dict.fromkeys([*own, *branches]))
    layout = Layout(rows, tuple(rows.index(slot) for slot in [*own, *branches]))
    return layout, [branches.index(row) for row in away]


def rule_of(expression: Expression, branches: Sequence[int], params: SamplingParams, images: int) -> Rule:
    """The superposition rule of a request, one line an image; AND's numbers are the whole lifts."""
    terms = leaves(expression)
    count = len(terms)
    temperature = 1.0
    numbers: Sequence[float]
    match expression:
        case Or(temperature=t, biases=biases):
            operator, numbers, temperature = Operator.OR, biases or [0.0] * count, t
        case And(lifts=lifts):
            operator, numbers = Operator.AND, lifts or [0.0] * count
        case Average(weights=weights):
            total = sum(weights) if weights else count
            operator, numbers = Operator.AVERAGE, [w / total for w in weights or [1.0] * count]
        case Product(weights=weights):
            operator, numbers = Operator.PRODUCT, weights or [1.0] * count
        case Prompt():
            operator, numbers = Operator.AVERAGE, [1.0]
    width = max(branches, default=-1) + 1
    branch = torch.zeros(count, width, dtype=torch.float64)
    for i, p in enumerate(branches):
        branch[i, p] = 1
    return Rule(
        torch.full((images,), int(operator)),
        torch.ones(images, count, dtype=torch.bool),
        torch.tensor(numbers, dtype=torch.float64).expand(images, -1),
        torch.full((images,), temperature, dtype=torch.float64),
        torch.full((images,), params.guidance_scale, dtype=torch.float64),
        branch.expand(images, -1, -1),
    )
