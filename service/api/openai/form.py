"""Reading multipart/form-data: files, and fields that are text as the ``openai`` client writes them.

The client writes nested objects as ``superdiff[expression][or][]=a cat``. Everything is text there, so a value is read
as JSON has it, a number or a truth value, unless its field holds text.
"""

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from pipelines.errors import InvalidInputError
from pipelines.grammar import MAX_TEXT
from service import strict_json
from service.api.bodies import BoundedRequest
from service.api.openai.schemas import ImageRequest
from service.strict_json import Bounds

_MEDIA_TYPE: Final = "multipart/form-data"
_TEXTS: Final = {"prompt", "model", "user", "expression", "negative_prompt"}
_IMAGE: Final = ("image", "image[]")
_MASK: Final = "mask"
_EXTRA: Final = "superdiff"
# A character takes at most four bytes of UTF-8.
_MOST_BYTES: Final = 4 * MAX_TEXT
_MOST_FILES: Final = 8
_MOST_FIELDS: Final = 256
_KEYS: Final = re.compile(r"\[([^\[\]]*)\]")
_DEEPEST: Final = 32
_LONGEST_NUMBER: Final = 64
_AS_JSON: Final = f"send {_EXTRA} as one JSON string"


@dataclass(frozen=True, slots=True)
class Files:
    """The pictures of a request.

    Attributes:
        image: A picture file.
        mask: A picture file, transparent where the image is painted anew; None to begin from all of the image.
    """

    image: bytes
    mask: bytes | None


async def read_form(request: Request, bounds: Bounds) -> tuple[dict[str, Any], Files]:
    """The fields of a form, typed, and its files.

    Args:
        request: Whose body is a form.
        bounds: How large JSON in a field may be.

    Raises:
        HTTPException: 415 where it is no form in UTF-8, 400 where it cannot be read.
        InvalidInputError: A file is missing, is there twice, or is no file; a nested field cannot be read.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    # Python knows encodings that take hours to read, and some that are no text.
    if content_type != _MEDIA_TYPE.encode() or options.get(b"charset", b"utf-8").lower() not in {b"utf-8", b"utf8"}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body must be {_MEDIA_TYPE} in UTF-8")
    async with request.form(max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_MOST_BYTES) as form:
        if isinstance(request, BoundedRequest):
            await request.enter(
                sum(value.size or 0 for _, value in form.multi_items() if isinstance(value, UploadFile))
            )
        images = [await _bytes("image", value) for name in _IMAGE for value in form.getlist(name)]
        masks = [await _bytes(_MASK, value) for value in form.getlist(_MASK)]
        if not images:
            raise InvalidInputError("a picture file is required", field=("image",))
        if len(images) > 1:
            raise InvalidInputError(f"one image can be edited, got {len(images)}", field=("image",))
        if len(masks) > 1:
            raise InvalidInputError(f"one mask can be given, got {len(masks)}", field=(_MASK,))
        return typed_fields(form, bounds), Files(images[0], masks[0] if masks else None)


async def _bytes(name: str, value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise InvalidInputError("must be sent as a file of the form", field=(name,))
    return await value.read()


def typed_fields(form: FormData, bounds: Bounds) -> dict[str, Any]:
    """The fields of a form that are no pictures, as JSON would have them.

    Args:
        form: The form.
        bounds: How large JSON in a field may be.

    Raises:
        InvalidInputError: A field is there twice, is a file, or cannot be read.
    """
    fields: dict[str, Any] = {}
    for name in form:
        if name in {*_IMAGE, _MASK}:
            continue
        texts = [value for value in form.getlist(name) if isinstance(value, str)]
        if len(texts) < len(form.getlist(name)):
            raise InvalidInputError("must be text, not a file", field=(name,))
        if name.startswith(f"{_EXTRA}["):
            _put(fields, _path(name), texts)
        elif len(texts) > 1:
            raise InvalidInputError("is given more than once", field=(name,))
        else:
            _put(fields, (name,), [_object(texts[0], bounds)] if name == _EXTRA else texts)
    return fields


def _path(name: str) -> tuple[str, ...]:
    """("superdiff[lora][ink]") → ("superdiff", "lora", "ink"); a list ends in ""."""
    rest = name.removeprefix(_EXTRA)
    keys = _KEYS.findall(rest)
    if "".join(f"[{key}]" for key in keys) != rest or len(keys) > _DEEPEST:
        raise InvalidInputError(f"is no name of a nested field; {_AS_JSON}", field=(name,))
    if "" in keys[:-1]:
        # The client writes the items of such a list under one name each, so which belong together is lost.
        raise InvalidInputError(f"a form cannot hold a list of objects; {_AS_JSON}", field=(_EXTRA, *keys[:1]))
    return (_EXTRA, *keys)


def _put(fields: dict[str, Any], path: tuple[str, ...], values: list[Any]) -> None:
    """Write the values of one name into the nested fields."""
    is_list = len(path) > 1 and path[-1] == ""
    *parents, name = path[:-1] if is_list else path
    if len(values) > 1 and not is_list:
        raise InvalidInputError("is given more than once", field=path)
    inner = fields
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InvalidInputError(f"{parent} is given in two ways", field=path)
    if name in inner:
        raise InvalidInputError(f"{name} is given in two ways", field=path)
    inner[name] = values if is_list else _scalar(name, values[0])


def _scalar(name: str, value: Any) -> Any:
    """A value as JSON has it; text where its field holds text, or where it is neither a number nor a truth value."""
    if name in _TEXTS or not isinstance(value, str) or len(value) > _LONGEST_NUMBER:
        return value
    try:
        read = strict_json.parse(value)
    except strict_json.NotJsonError:
        return value
    return read if isinstance(read, int | float) else value


def _object(text: str, bounds: Bounds) -> Any:
    try:
        return strict_json.read(text, bounds)
    except strict_json.NotJsonError as error:
        raise InvalidInputError(str(error).removeprefix("the body "), field=(_EXTRA,)) from None


def published_form() -> dict[str, Any]:
    """The form's part of the OpenAPI document."""
    schema = ImageRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    file = {"type": "string", "format": "binary"}
    schema["properties"] = {
        "image": {**file, "description": "The picture to edit, one."},
        "mask": {**file, "description": "Of the image's size: what is transparent is painted anew."},
        **schema["properties"],
    }
    schema["required"] = ["image", *schema["required"]]
    return {"requestBody": {"required": True, "content": {_MEDIA_TYPE: {"schema": schema}}}}
