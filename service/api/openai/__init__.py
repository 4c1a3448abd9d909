"""The dialect of OpenAI's Images API, for the ``openai`` client as it is; docs/openai.md has what is honoured.

PREFIX is where it is, ``router`` its routes, ``DIALECT`` how it tells faults.
"""

from typing import Final

from service.api.openai.errors import DIALECT
from service.api.openai.routes import router

PREFIX: Final = router.prefix

__all__ = ["DIALECT", "PREFIX", "router"]
