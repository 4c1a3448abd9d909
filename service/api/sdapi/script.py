"""The always-on script "superdiff": what the dialect's own fields have no word for.

    "alwayson_scripts": {"superdiff": {"args": [{"operator": "or", "models": ["sd15", "sd21"]}]}}

The one argument is an object, or all arguments stand in their order, null for what is not given.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipelines.composition import MAX_LEAVES, Method
from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.grammar.forms import FORMS
from pipelines.kernel import Kernel
from pipelines.params import MAX_CANDIDATES, MAX_PARTICLES, SamplingParams, Select
from service.expressions import Written, from_prompt, from_wire, tree_of
from service.schemas.fields import NATS, Name, Real, Sharpness, Temperature, Whole, default, within_sentence
from service.schemas.trees import OPERATIONS

NAME: Final = "superdiff"
_PATH: Final = ("alwayson_scripts", NAME)
_PROMPT: Final = ("prompt",)
Chain = Literal["and", "or", "xor", "average", "product"]
_CHAINS: Final = frozenset(get_args(Chain))


def _lower(value: Any) -> Any:
    """A word in lower case: in prompts operators are upper case."""
    return value.lower() if isinstance(value, str) else value


class Script(BaseModel):
    """The script's arguments, in their order."""

    model_config = ConfigDict(extra="forbid")

    operator: Annotated[
        Chain | None,
        BeforeValidator(_lower),
        Field(description="Composes several models; of one, it takes the place of the prompt's outermost operator."),
    ] = None
    models: Annotated[
        list[Name], Field(max_length=MAX_LEAVES, description="Each draws the prompt; one is the default model.")
    ] = []
    method: Annotated[Method | None, Field(description="Of the outermost operator, an AND.")] = None
    sharpness: Annotated[Sharpness | None, Field(description="Of the outermost operator, an AND or XOR.")] = None
    temperature: Annotated[Temperature | None, Field(description="Of the outermost operator, an OR.")] = None
    lift: Annotated[
        Real | None,
        Field(ge=-NATS, le=NATS, allow_inf_nan=False, description="Of the outermost AND's first term, in nats."),
    ] = None
    candidates: Annotated[Whole, Field(ge=1, le=MAX_CANDIDATES)] = default(SamplingParams, "candidates")
    select: Select = default(SamplingParams, "select")
    particles: Annotated[Whole, Field(ge=1, le=MAX_PARTICLES)] = default(SamplingParams, "particles")
    kernel: Annotated[Kernel | None, Field(description="Instead of the sampler's name.")] = None
    guidance_start: Annotated[
        Real | None, Field(ge=0, le=1, allow_inf_nan=False, description="The share of steps without guidance.")
    ] = None

    def written(self, prompt: str, models: Sequence[str]) -> Written:
        """The prompt as an expression, composed as the script says.

        Args:
            prompt: Of the request.
            models: The names of the catalogue; the first is the request's default.

        Raises:
            InvalidInputError: It has no meaning.
            UnknownModelError: It names a model that there is not.
        """
        for i, name in enumerate(self.models):
            if name not in models:
                raise UnknownModelError(name, tuple(models), field=(*_PATH, "models", i))
        orders = [(name, *(other for other in models if other != name)) for name in self.models or models[:1]]
        texts = [from_prompt(prompt, order) for order in orders]
        options = self.model_dump(include={"method", "sharpness", "temperature", "lift"}, exclude_none=True)
        if len(texts) == 1 and self.operator is None and not options:
            return texts[0]
        trees = [tree_of(text.expression) for text in texts]
        operator = self.operator or "and"
        tree: dict[str, Any] = _operated(trees[0], self.operator) if len(trees) == 1 else {operator: trees}
        # The client wrote no tree: what is wrong with a part of it is told of the prompt.
        try:
            written = from_wire(_with(tree, options), models)
        except InvalidInputError as error:
            raise _of_prompt(error) from None
        return Written(written.expression, _of_prompt)


def script_of(scripts: Mapping[str, Any]) -> Script:
    """The script's arguments among those of all always-on scripts.

    Raises:
        InvalidInputError: They are not such as the script takes.
    """
    given: Any = next((value for name, value in scripts.items() if name.lower() == NAME), {})
    arguments = given.get("args", given) if isinstance(given, dict) else given
    if isinstance(arguments, list):
        arguments = _by_name(arguments)
    try:
        return Script.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        unknown = first["type"] == "extra_forbidden"
        told = f"there is no such argument; there are {', '.join(Script.model_fields)}" if unknown else first["msg"]
        raise InvalidInputError(within_sentence(told), field=(*_PATH, *first["loc"])) from None


def _by_name(arguments: Sequence[Any]) -> Any:
    """A list of arguments by their names: it is one object, or they stand in their order."""
    if len(arguments) == 1 and isinstance(arguments[0], dict):
        return arguments[0]
    names = list(Script.model_fields)
    if len(arguments) > len(names):
        detail = f"the script takes at most {len(names)} arguments, got {len(arguments)}: {', '.join(names)}"
        raise InvalidInputError(detail, field=(*_PATH, "args"))
    return {name: value for name, value in zip(names, arguments, strict=False) if value is not None}


def _word(tree: Mapping[str, Any]) -> str:
    """The operator of a tree; "" of a prompt."""
    return next((key for key in OPERATIONS if key in tree), "")


def _operated(tree: dict[str, Any], operator: str | None) -> dict[str, Any]:
    """A tree whose outermost operator is another chain; what is no chain becomes the only term of one."""
    word = _word(tree)
    if operator in {None, word}:
        return tree
    return {str(operator): tree[word] if word in _CHAINS else [tree]}


def _with(tree: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with options of its outermost operator."""
    word, options = _word(tree), dict(options)
    allowed = {*FORMS[OPERATIONS[word].operator].options, *(("lift",) if word == "and" else ())} if word else set()
    for name in options:
        if name not in allowed:
            of = f"the outermost operator, {word.upper()}, has none" if word else "the prompt has no operator"
            raise InvalidInputError(f"{name} has nothing to act on: {of}", field=(*_PATH, name))
    lift = options.pop("lift", 0.0)
    if lift:
        first, *others = tree[word]
        tree = {**tree, word: [{**first, "weight": (first.get("weight") or 0.0) + lift}, *others]}
    return {**tree, **options}


def _of_prompt(error: InvalidInputError) -> InvalidInputError:
    """An error of the composed tree as one of the prompt; one of the script's own stays."""
    return error if error.field[:2] == _PATH else InvalidInputError(error.detail, field=_PROMPT)
