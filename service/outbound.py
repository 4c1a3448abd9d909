"""Requests that the service itself makes: to addresses of the world alone, whatever a name resolves to.

A name is resolved once for a connection, every address is judged, and the connection goes to the very address that was
judged: between judging and connecting the name cannot become another. Host and SNI stay the name's. Redirects are not
followed, proxies of the environment are not asked, and of the answer nothing but its status is read.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import httpcore
import httpx

# The networks of translated IPv4 addresses, 64:ff9b::/96 (RFC 6052) and 64:ff9b:1::/48 (RFC 8215), by their first bits;
# ipaddress takes both for the world.
_NAT64: Final = 0x64FF9B << 64
_LOCAL_NAT64: Final = 0x64FF9B0001
_LOW_32: Final = 0xFFFFFFFF

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(name, port) → its addresses."""


class PrivateAddressError(Exception):
    """A name has an address that is not one of the world."""


class NoAnswerError(Exception):
    """Nobody could be reached, or nobody answered in time."""


async def resolved(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system has them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(text: str) -> bool:
    """Whether an address is one of the world: not private, loopback, link-local, reserved, nor with such a one inside.

    Args:
        text: IPv4 or IPv6, with a zone or without.
    """
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(str(address.ipv4_mapped))
    if int(address) >> 80 == _LOCAL_NAT64:
        return False
    translated = ipaddress.IPv4Address(int(address) & _LOW_32) if int(address) >> 32 == _NAT64 else None
    carried = [each for each in (address.sixtofour, *(address.teredo or ()), translated) if each is not None]
    return address.is_global and not address.is_multicast and all(is_public(str(each)) for each in carried)


class _Judged(httpcore.AsyncNetworkBackend):
    """Connects to judged addresses alone."""

    def __init__(self, resolve: Resolve, *, private: bool) -> None:
        self._resolve, self._private, self._inner = resolve, private, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of a name, if all of them may be connected to."""
        addresses = await self._resolve(host, port)
        if not self._private and (private := [each for each in addresses if not is_public(each)]):
            raise PrivateAddressError(f"{host} has the address {private[0]}, which is not one of the public internet")
        if not addresses:
            raise httpcore.ConnectError(f"{host} has no address")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)


async def post(
    url: httpx.URL,
    headers: Mapping[str, str],
    body: bytes,
    timeout_s: float,
    *,
    private: bool = False,
    resolve: Resolve = resolved,
) -> int:
    """POST a body, and return the answer's status.

    Args:
        url: Where.
        headers: Besides Host and Content-Length.
        body: What.
        timeout_s: How long all of it may take.
        private: Whether addresses that are not of the world are let through.
        resolve: How names are resolved.

    Raises:
        PrivateAddressError: The name has an address that it may not have.
        NoAnswerError: Nobody answered.
    """
    where = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    sent = [(b"Host", url.netloc), (b"Content-Length", str(len(body)).encode())]
    sent += [(name.encode(), value.encode()) for name, value in headers.items()]
    limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)}
    backend = _Judged(resolve, private=private)
    try:
        async with (
            asyncio.timeout(timeout_s),
            httpcore.AsyncConnectionPool(network_backend=backend) as pool,
            pool.stream("POST", where, headers=sent, content=body, extensions=limits) as answer,
        ):
            return answer.status
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, TimeoutError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error
