"""The command ``superdiff keys``: create, list and revoke API keys."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import typer

from service.callers import Allowance, Key, KeyNameError, KeyStore, Scope, mint
from service.commands.common import CommandError, Exit, JsonOption, print_json, read_settings, told
from service.keyring import Keyring, NoKeysError
from service.settings import Settings
from service.store.keys import open_keys, read_keys
from service.store.port import StoreError

keys_app = typer.Typer(help="API keys: create, list, revoke.", no_args_is_help=True)

_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([mhdw])", re.ASCII)
_NAME_LENGTH: Final = 100
T = TypeVar("T")


def check_keys(settings: Settings) -> None:
    """Refuse to start a service that others could reach without a key; see :meth:`Keyring.open`.

    The database is only looked at here: it is opened once, by the service itself.
    """

    async def check() -> None:
        await Keyring().open(await read_keys(settings.database_url), settings)

    try:
        asyncio.run(check())
    except (NoKeysError, StoreError) as error:
        raise CommandError(str(error)) from error
    if settings.allow_anyone:
        typer.secho("superdiff: everyone who reaches this service may use it; no API key is asked for", err=True)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[
        list[Scope] | None,
        typer.Option("--scope", help="generate (the default), read-metrics or admin; repeat for more."),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", help="Until when it holds: 90d, 12h, 30m, 4w; without, for ever.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="HTTP requests in any minute.", min=1)] = None,
    concurrent_jobs: Annotated[int | None, typer.Option(help="Jobs waiting and running at once.", min=1)] = None,
    pixel_steps_per_day: Annotated[
        int | None, typer.Option(help="Width × height × network rows over all steps, in a day.", min=1)
    ] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a key and show it, this once: only a hash of it is stored."""
    with told():
        if not name.strip() or len(name) > _NAME_LENGTH or not name.isprintable():
            raise CommandError(f"NAME must have 1 to {_NAME_LENGTH} printable characters, got {name!r}")
        now = time.time()
        expires = None if expires_in is None else now + _span(expires_in)
        allowance = Allowance(requests_per_minute, concurrent_jobs, pixel_steps_per_day)
        text, key = mint(name, frozenset(scope or [Scope.GENERATE]), allowance, now, expires)
        _done(lambda store: store.add(key), make=True)
    if as_json:
        print_json({"key": text, **_facts(key)})
        return
    typer.echo(text)
    note = f"This is the only time that key {key.id} ({name}) is shown: what is stored is a hash of it."
    typer.echo(note, err=True)


@keys_app.command("list")
def list_keys(*, as_json: JsonOption = False) -> None:
    """Say which keys there are, revoked ones too; the keys themselves are not stored."""
    with told():
        keys = _all()
    if as_json:
        print_json([_facts(key) for key in keys])
        return
    for key in keys:
        typer.echo(_line(key))


@keys_app.command("revoke")
def revoke_key(
    which: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="As superdiff keys list shows it.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Withdraw a key: a running service refuses it from its next request on."""
    with told():
        keys = _all()
        # Of revoked keys several may have one name; of the others one.
        named = [key for key in keys if key.id == which] or [key for key in keys if key.name == which]
        if not named:
            raise CommandError(f"there is no key {which!r}; superdiff keys list shows all")
        key = next((each for each in named if each.revoked is None), named[-1])
        _done(lambda store: store.revoke(key.id, time.time()))
        (key,) = [each for each in _all() if each.id == key.id]
    if as_json:
        print_json(_facts(key))
        return
    typer.echo(_line(key))


def _all() -> Sequence[Key]:
    return _done(lambda store: store.all())


def _done(act: Callable[[KeyStore], Awaitable[T]], *, make: bool = False) -> T:
    """Do something with the keys of the settings' database.

    Args:
        act: What.
        make: Whether to make a database that is not there.
    """

    async def do() -> T:
        store = await open_keys(read_settings().database_url, make=make)
        try:
            return await act(store)
        finally:
            await store.close()

    try:
        return asyncio.run(do())
    except (KeyNameError, StoreError) as error:
        raise CommandError(str(error)) from error


def _span(text: str) -> int:
    """Seconds of "90d"."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise CommandError(f"--expires-in must be a number with m, h, d or w, such as 90d, got {text!r}", Exit.WRONG)
    return int(found[1]) * _SECONDS[found[2]]


def _facts(key: Key) -> dict[str, Any]:
    """A key for machines, without what is secret."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "requests_per_minute": key.allowance.requests_per_minute,
        "concurrent_jobs": key.allowance.concurrent_jobs,
        "pixel_steps_per_day": key.allowance.pixel_steps_per_day,
        "created": _date(key.created),
        "expires": _date(key.expires),
        "last_used": _date(key.last_used),
        "revoked": _date(key.revoked),
    }


def _date(when: float | None) -> str | None:
    """A moment in UTC, as ISO 8601 has it."""
    return None if when is None else datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds")


def _line(key: Key) -> str:
    """A key in a line."""
    facts = _facts(key)
    state = "revoked" if key.revoked is not None else "valid" if key.usable(time.time()) else "expired"
    bounds = [f"{facts[name]} {name.replace('_', ' ')}" for name in Allowance.__dataclass_fields__ if facts[name]]
    dates = [
        f"{name.replace('_', ' ')} {facts[name]}"
        for name in ("created", "expires", "last_used", "revoked")
        if facts[name]
    ]
    return f"{key.id}  {key.name}  {state}  {', '.join([*facts['scopes'], *bounds])}  {', '.join(dates)}"
