"""Bodies that refuse unknown fields, and say which known one may be meant."""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from service.schemas.fields import MOST_PLACES

_UNKNOWN: Final = "extra_forbidden"
# How alike two names are that may be one mistyped; difflib's measure, from 0 to 1.
_ALIKE: Final = 0.7


class Closed(BaseModel):
    """A body that takes the fields that it has, and no others.

    Attributes:
        habits: What other tools call a field → what takes its place here, in words.
    """

    model_config = ConfigDict(extra="forbid")
    habits: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="wrap")
    @classmethod
    def _hinted(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            faults = error.errors(include_url=False)
            unknown = [fault for fault in faults if fault["type"] == _UNKNOWN and len(fault["loc"]) == 1]
            if not unknown:
                raise
            # Looking for names takes its time, and no more faults are told than these.
            told = {fault["loc"]: cls._unknown(str(fault["loc"][0])) for fault in unknown[:MOST_PLACES]}
            again = [_again(fault, told.get(fault["loc"], fault["msg"])) for fault in faults]
            raise ValidationError.from_exception_data(error.title, again) from None

    @classmethod
    def _unknown(cls, name: str) -> str:
        """What is told of a name that there is not."""
        names = [field.alias or own for own, field in cls.model_fields.items()]
        close = difflib.get_close_matches(name.lower(), names, 1, _ALIKE)
        hint = cls.habits.get(name) or (f"`{close[0]}`" if close else None)
        return f"there is no field `{name}`" + (f"; did you mean {hint}?" if hint else "")


def _again(fault: ErrorDetails, detail: str) -> InitErrorDetails:
    """A fault that was found, with a detail."""
    kind = PydanticCustomError(
        "unknown_field" if fault["type"] == _UNKNOWN else "fault", "{detail}", {"detail": detail}
    )
    return InitErrorDetails(type=kind, loc=fault["loc"], input=fault["input"])
