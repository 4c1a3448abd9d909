"""Who asks: callers are served in turn, and lists show their own jobs only."""

import hashlib
from typing import Annotated

from fastapi import Depends, Header, Request


def caller(
    request: Request,
    authorization: Annotated[str | None, Header(description="A key; never stored, only told apart.")] = None,
    x_client_id: Annotated[str | None, Header(max_length=200, description="A name of the client's choice.")] = None,
) -> str:
    """The key's digest, else the client's name for itself, else its address."""
    if authorization is not None:
        return "key:" + hashlib.sha256(authorization.encode()).hexdigest()
    if x_client_id is not None:
        return f"client:{x_client_id}"
    return f"address:{request.client.host}" if request.client else "unknown"


CallerDep = Annotated[str, Depends(caller)]
