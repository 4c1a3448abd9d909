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
    who = f"address:{request.client.host}" if request.client else "unknown"
    if authorization is not None:
        who = "key:" + hashlib.sha256(authorization.encode()).hexdigest()
    elif x_client_id is not None:
        who = f"client:{x_client_id}"
    request.state.caller = who  # for the line of the access log
    return who


CallerDep = Annotated[str, Depends(caller)]
