"""Who asks, for the routes: the gate has found the caller, and the client may add a label."""

import hashlib
from dataclasses import replace
from typing import Annotated, Final

from fastapi import Depends, Header, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.callers import Caller

_LABEL: Final = "Groups the caller's jobs in lists and keeps Idempotency-Keys apart; of no effect on limits and turns."


def caller(
    request: Request,
    # Only for the OpenAPI document: the gate has checked the key.
    _: Annotated[
        HTTPAuthorizationCredentials | None,
        Security(HTTPBearer(auto_error=False, scheme_name="API key", description="Where the service asks for one.")),
    ],
    x_client_id: Annotated[str | None, Header(max_length=200, description=_LABEL)] = None,
) -> Caller:
    """The caller, with its label: X-Client-Id, else the digest of an Authorization header that nobody has checked."""
    found: Caller = request.state.caller
    if x_client_id is not None:
        return replace(found, label=x_client_id)
    authorization = request.headers.get("authorization")
    if authorization is None or request.app.state.services.keyring.asks:
        return found
    return replace(found, label="key:" + hashlib.sha256(authorization.encode()).hexdigest())


CallerDep = Annotated[Caller, Depends(caller)]
