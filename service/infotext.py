"""Generation parameters as text, in the form that AUTOMATIC1111's WebUI writes into its pictures and reads from them.

    a cat, oil painting
    Negative prompt: blurry
    Steps: 20, Sampler: calibrated, CFG scale: 7, Seed: 1, Size: 512x512, Model: sd15

An expression is written in its text form (:mod:`pipelines.grammar`), so that the text, used as a prompt again, asks for
the same.
"""

import json
import re
from collections.abc import Iterator
from typing import Final

from pipelines import grammar
from pipelines.composition import Expression, Prompt
from pipelines.params import SamplingParams
from pipelines.plan import Plan

VERSION: Final = "superdiff-serve"
_NEGATIVE: Final = "Negative prompt:"
# "Key: value, " with values in quotes where they hold a comma, a colon or a line's end. Keys are short: matching takes
# linear time.
_PARAMETER: Final = re.compile(r'\s*(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE: Final = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
_FEWEST: Final = 3
_LONGEST: Final = 20_000


def infotext(plan: Plan, seed: int) -> str:
    """What a picture of a plan was made of.

    Args:
        plan: The plan.
        seed: Of this picture.
    """
    negative = _one_piece(plan.params.negative_prompt)
    lines = [prompt_of(plan.expression, plan.lead)]
    if negative:
        lines.append(f"{_NEGATIVE} {negative}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in _parameters(plan, seed)))
    return "\n".join(lines)


def prompt_of(expression: Expression, default_model: str) -> str:
    """The prompt that asks for an expression: plain text for a plain prompt, else the expression's text form.

    Args:
        expression: What is asked for.
        default_model: The model that need not be named.
    """
    if isinstance(expression, Prompt) and expression.model == default_model and expression.negative is None:
        adapters = expression.adapters
        plain = expression.text + "".join(f"<lora:{name}:{_number(scale)}>" for name, scale in adapters)
        named = all(name.isprintable() and name == name.strip() and not set(name) & set('<>:"') for name, _ in adapters)
        told = named and "<lora:" not in expression.text and _survives(expression.text)
        if told and not grammar.is_expression(plain):
            return plain
    return grammar.format(expression, default_model=default_model)


def parse(text: str) -> dict[str, str]:
    """The parameters that an infotext tells, by the names that stand in it.

    The prompts are under "Prompt" and "Negative prompt"; a size of two numbers, "Size: 512x768", is under "Size-1" and
    "Size-2". A text without parameters is all prompt.
    """
    *lines, last = text.strip().split("\n")
    pairs = _PARAMETER.findall(last) if len(last) <= _LONGEST else []
    if len(pairs) < _FEWEST:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            into = negative
        into.append(line.removeprefix(_NEGATIVE).strip())
    told = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    for key, written in pairs:
        value = _unquoted(written.strip())
        if size := _SIZE.fullmatch(value):
            told[f"{key}-1"], told[f"{key}-2"] = size.groups()
        else:
            told[key] = value
    return told


def _parameters(plan: Plan, seed: int) -> Iterator[tuple[str, str]]:
    """The names and values of the last line; what has no effect is left out."""
    params, plain = plan.params, SamplingParams()
    yield "Steps", str(params.steps)
    yield "Sampler", params.kernel.value
    if params.grid is not None:
        yield "Schedule type", params.grid.value
    yield "CFG scale", _number(params.guidance_scale)
    yield "Seed", str(seed)
    yield "Size", f"{plan.width}x{plan.height}"
    yield "Model", plan.lead
    if params.strength != plain.strength:
        yield "Denoising strength", _number(params.strength)
    if params.guidance_start != plain.guidance_start:
        yield "Guidance start", _number(params.guidance_start)
    if params.candidates != plain.candidates:
        yield "Candidates", str(params.candidates)
        yield "Select", params.select.value
    if params.particles != plain.particles:
        yield "Particles", str(params.particles)
    yield "Version", VERSION


def _survives(text: str) -> bool:
    """Whether a plain prompt comes out of :func:`parse` as it went in."""
    lines = text.split("\n")
    stripped = text == text.strip() and all(line == line.strip() for line in lines)
    return stripped and not any(line.startswith(_NEGATIVE) or not (line.isprintable()) for line in lines)


def _one_piece(negative: str) -> str:
    """A negative prompt that :func:`parse` reads as it stands: blanks are joined where it would not."""
    return negative if _survives(negative) else " ".join(negative.split())


def _number(number: float) -> str:
    return repr(float(number)).removesuffix(".0")


def _quoted(value: str) -> str:
    """A value, in quotes where it would not end at the next comma."""
    plain = not set(value) & set(',:"\n') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value.startswith('"') and value.endswith('"')):
        return value
    try:
        read = json.loads(value)
    except ValueError:
        return value
    return read if isinstance(read, str) else value
