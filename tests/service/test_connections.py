"""Slow clients against a real server over real sockets: those that keep it waiting are closed, those that wait live."""

import asyncio
import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from service.connections import server_options
from service.settings import Settings

pytestmark = pytest.mark.timeout(30)
LIMIT_S = 1.0
# What a loaded machine may add.
SLACK_S = 3.0
LONGER_S = 2.5
SETTINGS = Settings(
    header_timeout_s=LIMIT_S,
    body_timeout_s=LIMIT_S,
    body_bytes_per_s=1000,
    send_timeout_s=LIMIT_S,
    keep_alive_s=1,
    max_header_bytes=2048,
    max_connections=8,
)


async def echo(request):
    try:
        return PlainTextResponse(str(len(await request.body())))
    except ClientDisconnect:
        request.app.state.left += 1
        return PlainTextResponse("nobody reads this")


async def events(request):
    async def slowly():
        for i in range(5):
            await asyncio.sleep(LONGER_S / 5)
            yield f"data: {i}\n\n"

    return StreamingResponse(slowly(), media_type="text/event-stream")


async def long_poll(request):
    await asyncio.sleep(LONGER_S)
    return PlainTextResponse("at last")


async def large(request):
    return PlainTextResponse(b"x" * (64 << 20))


async def unread(request):
    return PlainTextResponse("the body is no matter of mine")


@pytest.fixture(scope="module")
def server():
    """A server of a light application, and its port."""
    app = Starlette(
        routes=[
            Route("/echo", echo, methods=["POST"]),
            Route("/events", events),
            Route("/long-poll", long_poll),
            Route("/large", large),
            Route("/unread", unread, methods=["POST"]),
        ]
    )
    app.state.left = 0
    config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", **server_options(SETTINGS))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.port = server.servers[0].sockets[0].getsockname()[1]
    server.app = app
    yield server
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@contextlib.contextmanager
def connected(server, **options):
    connection = socket.socket()
    for name, value in options.items():
        connection.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    with connection:
        connection.settimeout(LIMIT_S + SLACK_S)
        connection.connect(("127.0.0.1", server.port))
        yield connection


def problem_in(answer):
    """The problem document of an answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    return json.loads(body)


def until_closed(connection):
    """What the server sends before it closes the connection; TimeoutError where it does not."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(1 << 16):
            received += more
    return received


def until(connection, told):
    """What the server sends up to some words."""
    received = b""
    while told not in received:
        more = connection.recv(1 << 16)
        assert more, received
        received += more
    return received


def drip(connection, for_s):
    """Ten bytes a second."""
    for _ in range(int(for_s * 10)):
        connection.sendall(b"x")
        time.sleep(0.1)


HALF_HEADERS = b"GET /events HTTP/1.1\r\nHost: a\r\nX-Slow"
HALF_BODY = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf of"
HALF_CHUNKS = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (HALF_HEADERS, b"header_timeout_s"),
        (HALF_BODY, b"body_timeout_s"),
        (HALF_CHUNKS, b"body_timeout_s"),
    ],
    ids=["half headers", "half body", "half chunks"],
)
def test_who_keeps_the_server_waiting_is_closed(server, sent, told):
    with connected(server) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        answer = until_closed(connection)
        assert time.monotonic() - began >= LIMIT_S * 0.9
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert told in answer
        assert problem_in(answer)["instance"] == ("/echo" if b"/echo" in sent else "/")


def test_a_connection_made_in_advance_is_closed_without_a_word(server):
    """A browser would take an answer to nothing for that to the request which it sends on the connection next."""
    with connected(server) as connection:
        began = time.monotonic()
        assert until_closed(connection) == b""
        assert time.monotonic() - began >= LIMIT_S * 0.9


@pytest.mark.parametrize("begun", [HALF_HEADERS, HALF_BODY], ids=["headers", "body"])
def test_a_byte_now_and_then_is_not_enough(server, begun):
    with connected(server) as connection:
        connection.sendall(begun)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            drip(connection, LIMIT_S + SLACK_S)


def test_the_application_hears_that_the_client_of_half_a_body_has_left(server):
    before = server.app.state.left
    with connected(server) as connection:
        connection.sendall(HALF_BODY)
        until_closed(connection)
    deadline = time.monotonic() + SLACK_S
    while server.app.state.left == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_request_of_a_connection_has_its_time_too(server):
    whole = b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab"
    with connected(server) as connection:
        connection.sendall(whole)
        assert until(connection, b"no matter of mine").startswith(b"HTTP/1.1 200 ")
        connection.sendall(HALF_HEADERS)
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_reads_must_come_too(server):
    with connected(server) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf of")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_closed(server):
    with connected(server) as connection:
        connection.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert until_closed(connection).startswith(b"HTTP/1.1 200 ")


def test_who_takes_nothing_of_an_answer_is_closed(server):
    with connected(server, SO_RCVBUF=1 << 12) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(LIMIT_S + 1)
        assert len(until_closed(connection)) < 64 << 20


def test_headers_without_end_are_431(server):
    with connected(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 4096)
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert "2048 bytes (max_header_bytes)" in problem_in(answer)["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/x\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
    ],
    ids=["TLS", "a version", "a header", "no host", "a length"],
)
def test_what_is_no_http_is_400(server, sent):
    with connected(server) as connection:
        connection.sendall(sent)
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert problem_in(answer) == {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "detail": "this is no valid HTTP request",
            "instance": "/",
            "errors": [],
        }


@pytest.mark.parametrize(
    ("path", "told"), [("/events", b"data: 4"), ("/long-poll", b"at last")], ids=["event stream", "long poll"]
)
def test_a_client_that_waits_lives(server, path, told):
    with connected(server) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        began = time.monotonic()
        until(connection, told)
        assert time.monotonic() - began > LIMIT_S * 1.5


def test_a_slow_body_that_comes_steadily_is_taken(server):
    """3000 bytes at 1500 a second, where 1000 give a second more: 2 s, of which 1 is given without any."""
    with connected(server) as connection:
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n")
        for _ in range(20):
            connection.sendall(b"x" * 150)
            time.sleep(0.1)
        assert until(connection, b"\r\n\r\n3000").startswith(b"HTTP/1.1 200 ")


def test_further_connections_are_told_to_come_again(server):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(server)) for _ in range(SETTINGS.max_connections)]
        further = stack.enter_context(connected(server))
        deadline = time.monotonic() + SLACK_S
        while len(server.server_state.connections) <= len(held):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        further.sendall(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        answer = until_closed(further)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        assert problem_in(answer)["detail"] == "8 connections or requests are open already (max_connections)"
        assert problem_in(answer)["instance"] == "/unread"
