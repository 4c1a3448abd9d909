"""The plan of a request: everything about it that is known before a network runs, made once and read everywhere.

A plan comes from the expression, the parameters and the models' cards alone. Whoever has a plan needs no further check:
:func:`make_plan` refuses what has no meaning.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pipelines.card import Card, Guidance, Shape
from pipelines.composition import (
    TRAITS,
    Adapters,
    Average,
    Expression,
    Path,
    Prompt,
    check_tree,
    has_density,
    lead,
    leaf_paths,
    leaves,
    walk,
)
from pipelines.errors import IncompatibleModelsError, InvalidInputError, ModelLoadError
from pipelines.kernel import Kernel
from pipelines.mixing import Program, compile_program
from pipelines.params import SamplingParams, Select

JUDGED_LEVELS: Final = 8
"""Further network calls for candidates that are chosen by their density on fresh noise."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question to a network: a text, to a model with some LoRAs."""

    text: str
    model: str
    adapters: Adapters = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to.

    Attributes:
        expression: What to compose.
        params: How to sample.
        cards: Of the models that it was made for, by name.
        rows: The distinct questions to the networks: what is computed for every sample at every step.
        slots: For each of the M leaves, then of the P references, the index of its row.
        program: What the steps do with the answers.
        reported: The expression's own program, whose nodes' log-densities are reported.
        lifted: For each leaf whether its lift is known: it has a reference other than itself.
        shape: Of one sample.
        width: Of the pictures that are sampled, in pixels.
        height: Likewise.
        retrace: Whether nothing is drawn, and the log-densities of a known picture are wanted.
    """

    expression: Expression
    params: SamplingParams
    cards: Mapping[str, Card]
    rows: tuple[Row, ...]
    slots: tuple[int, ...]
    program: Program
    reported: Program
    lifted: tuple[bool, ...]
    shape: Shape
    width: int
    height: int
    retrace: bool = False

    @property
    def lead(self) -> str:
        """The model that encodes a known picture and decodes the result."""
        return lead(self.expression)

    @property
    def models(self) -> tuple[str, ...]:
        """The models that it needs, in the order in which they are named."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    @property
    def steps(self) -> int:
        """Reverse steps that are taken."""
        return self.params.calls

    @property
    def judged(self) -> int:
        """Network calls after the last step, by which candidates are compared."""
        params = self.params
        return JUDGED_LEVELS if params.candidates > 1 and params.select == Select.DENSITY and self.steps else 0

    @property
    def calls(self) -> int:
        """Network calls in all, one after another."""
        return self.steps + self.judged

    @property
    def parts(self) -> dict[tuple[str, Shape], int]:
        """Network rows of one step, by model and sample shape."""
        asked = Counter((row.model, self.shape) for row in self.rows)
        return {part: count * self.params.samples for part, count in asked.items()}

    @property
    def work(self) -> int:
        """Network rows in all."""
        judged = self.params.num_images * self.params.candidates * self.judged
        return len(self.rows) * (self.params.samples * self.steps + judged)


def make_plan(
    expression: Expression,
    params: SamplingParams,
    cards: Mapping[str, Card],
    *,
    on_canvas: bool = False,
    retrace: bool = False,
) -> Plan:
    """Plan a request, or refuse it.

    Args:
        expression: What to compose.
        params: How to sample.
        cards: Of the models that the expression names.
        on_canvas: Whether there is a known picture to paint on.
        retrace: Whether only the known picture's log-densities are wanted.

    Raises:
        InvalidInputError: Its field is a path in the expression, or a parameter's name.
        IncompatibleModelsError: The models do not share a data space, noise levels or sample shapes.
    """
    check_tree(expression)
    used = {leaf.model: cards[leaf.model] for leaf in leaves(expression)}
    _check_spaces(used)
    for path, leaf in zip(leaf_paths(expression), leaves(expression), strict=True):
        _check_leaf(path, leaf, params, cards[leaf.model])
    _check_operators(expression, params, cards, retrace=retrace)
    if params.strength < 1 and not on_canvas:
        raise InvalidInputError("strength below 1 needs an image to start from", field=("strength",))
    first = cards[lead(expression)]
    width = first.width if params.width is None else params.width
    height = first.height if params.height is None else params.height
    rows, slots, branch = _lay_out(expression, params, cards)
    reported = compile_program(expression, branch)
    # The densities of a known picture are read along one path for all leaves: the one that their mean proposes.
    program = compile_program(Average(leaves(expression)), branch) if retrace else reported
    return Plan(
        expression=expression,
        params=params,
        cards=used,
        rows=rows,
        slots=slots,
        program=program,
        reported=reported,
        lifted=tuple(bool(branch) and _guides(cards[leaf.model]) for leaf in leaves(expression)),
        shape=_shape(used, width, height),
        width=width,
        height=height,
        retrace=retrace,
    )


def _guides(card: Card) -> bool:
    return card.guidance is Guidance.CLASSIFIER_FREE


def _lay_out(
    expression: Expression, params: SamplingParams, cards: Mapping[str, Card]
) -> tuple[tuple[Row, ...], tuple[int, ...], tuple[int, ...]]:
    """The rows; the slots of leaves and references; for each leaf its reference, () without any.

    The references are the leaves' models, with their LoRAs, under the negative prompt. They are left out where guidance
    1 makes them vanish and no operator or choice needs them. A model without classifier-free guidance is its own
    reference: then nothing leads it away, and no row is added.
    """
    terms = leaves(expression)
    own = [Row(leaf.text, leaf.model, leaf.adapters) for leaf in terms]
    refers = any(TRAITS[type(node)].refers for _, node in walk(expression) if not isinstance(node, Prompt))
    if params.guidance_scale == 1 and not refers and params.candidates == 1:
        return (rows := tuple(dict.fromkeys(own))), tuple(rows.index(row) for row in own), ()
    away = [
        Row(negative_of(leaf, params), leaf.model, leaf.adapters) if _guides(cards[leaf.model]) else row
        for leaf, row in zip(terms, own, strict=True)
    ]
    references = list(dict.fromkeys(away))
    rows = tuple(dict.fromkeys([*own, *references]))
    slots = tuple(rows.index(row) for row in [*own, *references])
    return rows, slots, tuple(references.index(row) for row in away)


def negative_of(leaf: Prompt, params: SamplingParams) -> str:
    """What guidance leads a leaf away from: its own negative prompt, else the request's."""
    return params.negative_prompt if leaf.negative is None else leaf.negative


def _shape(cards: Mapping[str, Card], width: int, height: int) -> Shape:
    """The sample shape of a picture size: each model checks the size, and models of one data space agree."""
    first, *_ = [card.sample_shape(width, height) for card in cards.values()]
    return first


def _check_spaces(cards: Mapping[str, Card]) -> None:
    """Refuse models whose samples or noise levels have nothing in common."""
    spaces = {name: card.space for name, card in cards.items()}
    if len(set(spaces.values())) > 1:
        raise IncompatibleModelsError({name: str(space) for name, space in spaces.items()})
    if max(card.sigma_min for card in cards.values()) >= min(card.sigma_max for card in cards.values()):
        ranges = {name: f"σ {card.sigma_min:.3g}–{card.sigma_max:.3g}" for name, card in cards.items()}
        raise IncompatibleModelsError(ranges)


def _check_leaf(path: Path, leaf: Prompt, params: SamplingParams, card: Card) -> None:
    """Refuse what a leaf's model cannot read, apply or follow."""
    model = f"the model {leaf.model!r}"
    if leaf.text and not card.takes_prompts:
        raise InvalidInputError(f"{model} takes no prompts; leave it empty", field=(*path, "prompt"))
    source = ("negative_prompt",) if leaf.negative is None else (*path, "negative_prompt")
    if negative_of(leaf, params):
        if not card.takes_prompts:
            raise InvalidInputError(f"{model} takes no prompts, so a negative prompt has no effect", field=source)
        if not _guides(card):
            raise InvalidInputError(
                f"{model} has no classifier-free guidance, so a negative prompt has no effect", field=source
            )
    if card.guidance is Guidance.NONE and params.guidance_scale != 1:
        detail = f"{model} has no guidance: guidance_scale must be 1, got {params.guidance_scale:g}"
        raise InvalidInputError(detail, field=("guidance_scale",))
    for name, _ in leaf.adapters:
        if name in card.broken_adapters:
            raise ModelLoadError(f"{model}: the LoRA {name!r} cannot be loaded: {card.broken_adapters[name]}")
        if name not in card.adapters:
            has = f"it has {', '.join(card.adapters)}" if card.adapters else "it has none"
            raise InvalidInputError(f"{model} has no LoRA {name!r}; {has}", field=(*path, "lora"))


def _check_operators(
    expression: Expression, params: SamplingParams, cards: Mapping[str, Card], *, retrace: bool
) -> None:
    """Refuse operators and choices without the reference, the noise or the density that they need."""
    operators = [(path, node) for path, node in walk(expression) if not isinstance(node, Prompt)]
    for path, node in operators:
        traits = TRAITS[type(node)]
        if traits.refers:
            _check_referred(node, path, cards, traits.word.upper())
    if params.candidates > 1:
        _check_referred(expression, (), cards, "the choice among candidates")
    if params.particles > 1 and not has_density(expression):
        detail = "a balanced AND has no log-density, which particles need; particles must be 1"
        raise InvalidInputError(detail, field=("particles",))
    weighs = any(TRAITS[type(node)].weighs and len(node.terms) > 1 for _, node in operators)
    silent = params.kernel is Kernel.DETERMINISTIC and weighs
    if silent or (not params.kernel.adds_noise and (params.particles > 1 or retrace)):
        needs = "this operator" if silent else "particles" if params.particles > 1 else "the density of a picture"
        allowed = ", ".join(
            kernel for kernel in Kernel if kernel.adds_noise or (silent and kernel is not params.kernel)
        )
        lacks = "estimates no density" if silent or params.kernel is Kernel.DETERMINISTIC else "adds no noise"
        detail = f"the {params.kernel} kernel {lacks}, which {needs} needs; allowed are {allowed}"
        raise InvalidInputError(detail, field=("kernel",))


def _check_referred(expression: Expression, path: Path, cards: Mapping[str, Card], what: str) -> None:
    """Refuse leaves whose model has no reference to compare them with."""
    for place, leaf in walk(expression, path):
        if isinstance(leaf, Prompt) and not _guides(cards[leaf.model]):
            detail = f"the model {leaf.model!r} has no unconditional density, which {what} needs"
            raise InvalidInputError(detail, field=(*place, "model"))
