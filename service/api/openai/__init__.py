"""The dialect of OpenAI's Images API, for the ``openai`` client as it is; docs/openai.md has what is honoured.

PREFIX is where it is, ``router`` its routes, ``render`` its way to tell a fault.
"""

from typing import Final

from service.api.openai.errors import render
from service.api.openai.routes import router

PREFIX: Final = router.prefix

__all__ = ["PREFIX", "render", "router"]
