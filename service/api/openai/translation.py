"""From a request of the dialect to an order, by way of the native body that it stands for, and faults back again."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import PrivateAttr, ValidationError

from pipelines.composition import Path
from pipelines.errors import InvalidInputError, UnknownModelError
from pipelines.grammar import is_expression
from service.api.openai.form import Files
from service.api.openai.schemas import ImageRequest
from service.orders import Known, Order
from service.schemas import habits
from service.schemas.requests import SuperposeRequest

_EXPRESSION: Final = "expression"
_EXTRA: Final = "superdiff"
# Native fields that have a name in this dialect.
_OWN: Final = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "output_format": "output_format",
    "response_format": "response_format",
    "preview_every": "partial_images",
    "image": "image",
    "mask": "mask",
}


class _Body(SuperposeRequest):
    """A native body whose picture came as files."""

    habits = habits.EXTRA
    _files: Files | None = PrivateAttr(default=None)

    def known(self) -> Known | None:
        """The picture to begin from: what is transparent in its mask is painted anew."""
        if self._files is None:
            return None
        return Known(self._files.image, self._files.mask, self.fit, self.mask_feather, painted="clear")

    def let_go(self) -> None:
        """Forget the pictures."""
        super().let_go()
        self._files = None

    def over(self, files: Files | None) -> SuperposeRequest:
        """The body with its picture; pydantic sets no private attribute while it validates."""
        self._files = files
        return self


def body_of(asked: ImageRequest, files: Files | None) -> SuperposeRequest:
    """The native body that a request stands for.

    Args:
        asked: The request.
        files: The picture to edit; None to draw a new one.

    Raises:
        InvalidInputError: The extra fields hold one that has a name in this dialect.
        RequestValidationError: An extra field is not as the native body has it.
    """
    with in_own_words(asked):
        return _Body.model_validate(_native(asked)).over(files)


def order_of(
    asked: ImageRequest, body: SuperposeRequest, models: Sequence[str], caller: str, timeout_s: float
) -> Order:
    """The order that a request stands for.

    Args:
        asked: The request.
        body: Its native body.
        models: The names of the catalogue; the first is the default.
        caller: Who asks.
        timeout_s: How long the answer may take where the request does not say.

    Raises:
        InvalidInputError: What is asked for has no meaning.
        UnknownModelError: There is no model of a name.
    """
    if asked.model is not None and asked.model not in models:
        raise UnknownModelError(asked.model, tuple(models), field=("model",))
    named_first = sorted(models, key=lambda name: name != asked.model)
    with in_own_words(asked):
        order = body.order(named_first, caller, timeout_s)
    return replace(order, ask=replace(order.ask, previews=asked.partial_images))


@contextlib.contextmanager
def in_own_words(asked: ImageRequest) -> Iterator[None]:
    """Let errors that name fields of the native body name those of the request."""
    try:
        yield
    except (InvalidInputError, UnknownModelError) as error:
        error.field = _renamed(error.field, asked)
        raise
    except ValidationError as error:
        places = [{**each, "loc": ("body", *(_renamed(each["loc"], asked) or (_EXTRA,)))} for each in error.errors()]
        raise RequestValidationError(places, body=asked.superdiff) from None


def _native(asked: ImageRequest) -> dict[str, Any]:
    """The native body: the extra fields, and the dialect's own under their native names."""
    for name in asked.superdiff:
        if name in _OWN:
            raise InvalidInputError(f"the field is called {_OWN[name]} here, beside {_EXTRA}", field=(name,))
    if asked.superdiff.get("callback_url") is not None:
        detail = "this dialect answers when the job is over; it calls nobody back"
        raise InvalidInputError(detail, field=("callback_url",))
    width, height = asked.size or (None, None)
    own = {"num_images": asked.n, "width": width, "height": height, "output_format": asked.output_format}
    text: str | dict[str, str] = asked.prompt if is_expression(asked.prompt) else {"prompt": asked.prompt}
    extra = {name: value for name, value in asked.superdiff.items() if value is not None}
    return {_EXPRESSION: text, **extra, **own}


def _renamed(path: Path, asked: ImageRequest) -> Path:
    """Where a field of the native body stands in the request."""
    if not path:
        return ()
    head = str(path[0])
    if head in asked.superdiff:
        return (_EXTRA, *path)
    if head == _EXPRESSION:
        return ("prompt",)
    return (_OWN[head],) if head in _OWN else (_EXTRA, *path)
