"""Requests of the service itself: to whom they may go, and callbacks to a real receiver."""

import asyncio
import base64
import json
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from fastapi.testclient import TestClient
from standardwebhooks import Webhook

from pipelines.catalog import Catalog
from pipelines.errors import InvalidInputError
from service.app import create_app
from service.callbacks import Callbacks, signature
from service.engine.metrics import Metrics
from service.outbound import NoAnswerError, PrivateAddressError, is_public, post
from service.settings import Settings
from service.store.memory import MemoryStore
from service.store.port import StoreUnavailableError
from service.store.records import Message
from tests.service.store.made import DONE, job
from tests.waits import soon

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
AND = "/v1/superpose/and"
BODY = {"components": ["a red circle", "a blue star"], "steps": 3, "seed": 5}
ASYNC = {"Prefer": "respond-async"}


class Receiver(ThreadingHTTPServer):
    """Takes what is posted, and answers with the statuses given, then with 204."""

    def __init__(self, *statuses, pause_s=0.0):
        super().__init__(("127.0.0.1", 0), _Taking)
        self.statuses, self.pause_s, self.taken = list(statuses), pause_s, []

    @property
    def host(self):
        return f"hooks.example:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that went away is no fault."""


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.taken.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        time.sleep(self.server.pause_s)
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def receiving(*statuses, **given):
    receiver = Receiver(*statuses, **given)
    thread = threading.Thread(target=receiver.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


def names(*answers):
    """A resolver that gives one answer after another, the last one for ever; and what it was asked."""
    left, asked = list(answers), []

    async def resolve(host, port):
        asked.append((host, port))
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve, asked


LOCAL = ["127.0.0.1"]


NOT_OF_THE_WORLD = """
0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.1.1 169.254.169.254 172.16.0.1 192.168.1.1 192.0.2.1 198.18.0.1
224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 2001:db8::1
::ffff:10.0.0.1 ::ffff:127.0.0.1 64:ff9b::a00:1 64:ff9b:1::1 2002:a00:1::
"""


@pytest.mark.parametrize("address", NOT_OF_THE_WORLD.split())
def test_addresses_that_are_not_of_the_world(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_world(address):
    assert is_public(address)


def posted(url, **given):
    return asyncio.run(post(httpx.URL(url), {}, b"{}", **{"timeout_s": 5.0} | given))


def test_a_name_is_resolved_once_and_the_connection_goes_there():
    with receiving() as receiver:
        # Asked a second time, the name would have turned private.
        resolve, asked = names(LOCAL, ["10.0.0.1"])
        assert posted(f"http://{receiver.host}/a?b=c", private=True, resolve=resolve) == 204
        ((path, headers, body),) = receiver.taken
    assert asked == [("hooks.example", receiver.server_port)]
    assert (path, body) == ("/a?b=c", b"{}")
    assert headers["Host"] == receiver.host


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"], ["169.254.169.254"]])
def test_a_name_with_a_private_address_is_not_connected_to(answer):
    with receiving() as receiver:
        resolve, _ = names(answer)
        with pytest.raises(PrivateAddressError, match=r"hooks\.example has the address"):
            posted(f"http://{receiver.host}/", resolve=resolve)
        with pytest.raises(PrivateAddressError):
            posted(f"http://127.0.0.1:{receiver.server_port}/")
        assert receiver.taken == []


def test_redirects_are_not_followed():
    with receiving(307, 307) as receiver:
        resolve, _ = names(LOCAL)
        assert posted(f"http://{receiver.host}/", private=True, resolve=resolve) == 307
        assert [path for path, _, _ in receiver.taken] == ["/"]


def test_nobody_is_waited_for_long(monkeypatch):
    resolve, _ = names(LOCAL)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with receiving(pause_s=0.5) as receiver:
        began = time.monotonic()
        with pytest.raises(NoAnswerError):
            posted(f"http://{receiver.host}/", private=True, resolve=resolve, timeout_s=0.1)
        assert time.monotonic() - began < 0.4
        assert posted(f"http://{receiver.host}/", private=True, resolve=resolve) == 204
    with pytest.raises(NoAnswerError):
        posted(f"http://{receiver.host}/", private=True, resolve=resolve)
    with pytest.raises(NoAnswerError, match="no address"):
        posted(f"http://{receiver.host}/", private=True, resolve=names([])[0])


def test_the_signature_is_that_of_standard_webhooks():
    now = int(time.time())
    headers = {
        "webhook-id": "m",
        "webhook-timestamp": str(now),
        "webhook-signature": signature(SECRET, "m", now, b"{}"),
    }
    assert Webhook(SECRET).verify("{}", headers) == {}
    # The example of the specification.
    example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    told = signature(example, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert told == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


class Sender:
    """Callbacks over a store of which one job is over, with a clock that is put forward to what is due."""

    def __init__(self, *hosts, private=True, resolve=None, url="http://{host}/", jobs=1):
        self.now, self.waited, self.told = 1000.0, [], b"{}"
        self.callbacks = Callbacks(
            hosts,
            SECRET,
            private=private,
            metrics=Metrics(),
            clock=lambda: self.now,
            resolve=resolve or names(LOCAL)[0],
        )
        self.store, self.jobs = MemoryStore(), [f"j{i}" for i in range(jobs)]
        self._url = url.format(host=hosts[0])

    async def _say(self, record):
        return self.told

    async def owe(self):
        for job_id in self.jobs:
            lease = await self.store.add(job(job_id, message=Message(self._url)), "w1")
            await self.store.finish(lease, DONE, self.now)
        self.callbacks._store, self.callbacks._told = self.store, self._say

    async def round(self):
        """Send what is due, once."""
        await self.callbacks._begin()
        await asyncio.gather(*self.callbacks._tries)

    async def messages(self):
        return [(await self.store.get(job_id)).message for job_id in self.jobs]

    async def _until_settled(self):
        await self.owe()
        for _ in range(20):
            await self.round()
            dues = [each.due for each in await self.messages() if each.due is not None]
            if not dues:
                return
            self.waited.append(min(dues) - self.now)
            self.now = min(dues)

    def send(self):
        """How it ended: the outcomes counted."""
        asyncio.run(self._until_settled())
        counted = self.callbacks._metrics.callbacks.collect()[0].samples
        return {sample.labels["outcome"]: sample.value for sample in counted if sample.name.endswith("_total")}


def test_a_message_goes_out_again_until_it_is_taken():
    with receiving(500, 503, 307) as receiver:
        sender = Sender(receiver.host)
        assert sender.send() == {"delivered": 1}
        assert {headers["webhook-id"] for _, headers, _ in receiver.taken} == {"job_j0"}
        assert len(receiver.taken) == 4
    assert all(low <= seconds <= 1.2 * low for low, seconds in zip((2, 8, 32), sender.waited, strict=True))
    (message,) = asyncio.run(sender.messages())
    assert (message.tries, message.due, message.outcome) == (4, None, "delivered")


def test_a_receiver_that_never_takes_it_is_given_up(caplog):
    with receiving(*[500] * 9) as receiver:
        sender = Sender(receiver.host, url="http://{host}/secret")
        assert sender.send() == {"failed": 1}
        assert len(receiver.taken) == 6
    assert sum(sender.waited) < 1.2 * 682.1
    assert "given up: hooks.example answered 500" in caplog.text
    assert "secret" not in caplog.text


def test_a_receiver_that_is_gone_is_not_asked_again():
    with receiving(410) as receiver:
        assert Sender(receiver.host).send() == {"failed": 1}
        assert len(receiver.taken) == 1


def test_a_name_that_turns_private_between_two_tries_gets_nothing():
    with receiving() as receiver:
        tries = []

        async def resolve(host, port):
            tries.append(host)
            if len(tries) == 1:
                raise OSError("no answer of the name server")
            return LOCAL

        sender = Sender(receiver.host, private=False, resolve=resolve, url="https://{host}/")
        assert sender.send() == {"refused": 1}
        assert len(tries) == 2
        assert receiver.taken == []


def test_a_host_that_may_not_be_called_any_more_gets_nothing():
    """What is owed may be older than the settings."""
    with receiving() as receiver:
        assert Sender("other.example", url=f"http://{receiver.host}/").send() == {"refused": 1}
        assert receiver.taken == []


def test_two_senders_on_one_store_send_once_and_one_goes_on_where_the_other_stopped():
    with receiving(500) as receiver:
        one, two = Sender(receiver.host), Sender(receiver.host)

        async def play():
            await one.owe()
            two.store = one.store
            two.callbacks._store, two.callbacks._told = one.store, one._say
            await asyncio.gather(one.round(), two.round())
            assert len(receiver.taken) == 1
            (message,) = await one.messages()
            two.now = message.due
            # This one takes it, and stops before it is sent.
            assert len(await one.store.take_messages(two.now, 30.0, 9)) == 1
            await two.round()
            assert len(receiver.taken) == 1
            two.now += 30.0
            await asyncio.gather(one.round(), two.round())
            assert len(receiver.taken) == 2
            two.now += 1e6
            await two.round()
            return await one.messages()

        (message,) = asyncio.run(play())
        assert (message.tries, message.outcome) == (3, "delivered")
        assert len({headers["webhook-id"] for _, headers, _ in receiver.taken}) == 1


def test_senders_that_always_stop_give_up_too():
    with receiving() as receiver:
        sender = Sender(receiver.host)

        async def play():
            await sender.owe()
            for _ in range(6):
                assert await sender.store.take_messages(sender.now, 30.0, 9)
                sender.now += 30.0
            await sender.round()
            return await sender.messages()

        (message,) = asyncio.run(play())
        assert (message.due, message.outcome) == (None, "failed")
        assert receiver.taken == []


def test_a_store_that_cannot_be_written_costs_a_message_that_comes_twice(caplog):
    with receiving() as receiver:
        sender = Sender(receiver.host)

        async def play():
            await sender.owe()
            note, sender.store.note_message = sender.store.note_message, unavailable
            await sender.round()
            sender.store.note_message = note
            sender.now += 30.0
            await sender.round()
            return await sender.messages()

        async def unavailable(*_):
            raise StoreUnavailableError("not now")

        (message,) = asyncio.run(play())
        assert (len(receiver.taken), message.tries, message.outcome) == (2, 2, "delivered")
    assert "may go out again: not now" in caplog.text


def test_messages_go_out_a_few_at_a_time():
    with receiving(pause_s=0.05) as receiver:
        sender = Sender(receiver.host, jobs=20)
        at_once, most = [0], [0]
        posted_before = sender.callbacks._posted

        async def counted(*given):
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
            try:
                return await posted_before(*given)
            finally:
                at_once[0] -= 1

        sender.callbacks._posted = counted

        async def send():
            await sender.owe()
            sender.callbacks.start(sender.store, sender._say)
            async with asyncio.timeout(10):
                while any(message.due is not None for message in await sender.messages()):
                    await asyncio.sleep(0.01)
            await sender.callbacks.close()

        soon(send(), 20)
        assert len(receiver.taken) == 20
        assert most == [8]


@pytest.mark.parametrize("turns", range(5))
def test_closing_ends_a_sender_that_is_stirred_at_the_same_moment(turns):
    sender = Sender("hooks.example")

    async def play():
        sender.callbacks.start(sender.store, sender._say)
        for _ in range(5):
            await asyncio.sleep(0)
        over = Future()
        sender.callbacks.look_after(over)
        over.set_result(None)
        # However far the news has come.
        for _ in range(turns):
            await asyncio.sleep(0)
        await sender.callbacks.close()

    soon(play())


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://hooks.example/", "must be https://HOST/PATH"),
        ("ftp://hooks.example/", "must be https://HOST/PATH"),
        ("https:///path", "must be https://HOST/PATH"),
        ("https://me:secret@hooks.example/", "without user"),
        ("https://hooks.example/#a", "without user and fragment"),
        ("https://hooks.example/" + "a" * 2048, "2048 characters"),
        ("https://hooks.example:8443/", "may not call hooks.example:8443"),
        ("https://other.example/", "may not call other.example"),
        ("https://hooks.example.other/", "may not call"),
        ("https://hooks.example\\@other.example/", "."),
        ("https://127.0.0.1/", "may not call 127.0.0.1"),
        ("https://[::1]/", "may not call"),
        ("https://hooks.example:99999/", "may not call"),
        ("https://hooks.example:x/", "is no address"),
        ("not an address", "must be https://HOST/PATH"),
    ],
)
def test_addresses_that_are_not_allowed_are_refused_at_once(url, told):
    made = Sender("hooks.example", private=False).callbacks
    with pytest.raises(InvalidInputError, match=told) as refused:
        made.checked(url)
    assert refused.value.field == ("callback_url",)


def test_addresses_that_are_allowed():
    made = Sender("Hooks.example", "other.example:8443", private=False).callbacks
    for url in ("https://hooks.example/a?b", "https://HOOKS.example:443/", "https://other.example:8443"):
        assert made.checked(url).scheme == "https"


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!", "whsec_AAAA", SECRET.removeprefix("whsec_")])
def test_callbacks_are_not_sent_unsigned(secret):
    with pytest.raises(ValueError, match="callback_hosts needs callback_secret"):
        Settings(callback_hosts="hooks.example", callback_secret=secret)


@pytest.fixture(scope="module")
def receiver():
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def client(models, receiver):
    settings = Settings(
        database="memory:",
        running_rows=24,
        callback_hosts=receiver.host,
        callback_secret=SECRET,
        callback_private=True,
    )
    app = create_app(settings, catalog=Catalog.of(models))
    app.state.services.callbacks._resolve = names(LOCAL)[0]
    with TestClient(app) as client:
        yield client


def taken(receiver, count):
    for _ in range(500):
        if len(receiver.taken) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{len(receiver.taken)} came")


@pytest.mark.parametrize("path", [AND, "/v1/density"])
def test_a_job_tells_that_it_is_over(client, receiver, path):
    receiver.taken.clear()
    body = BODY | {"callback_url": f"http://{receiver.host}/done"}
    if path != AND:
        drawn = client.post(AND, json=BODY).json()["images"][0]["b64_json"]
        body = {key: value for key, value in body.items() if key != "steps"} | {"image": drawn, "steps": 2}
    headers = ASYNC | {"Idempotency-Key": f"once {path}"}
    job = client.post(path, json=body, headers=headers).json()["id"]
    taken(receiver, 1)
    # The same request again is the same job, and is told of once.
    assert client.post(path, json=body, headers=headers).json()["id"] == job
    ((where, sent_with, told),) = receiver.taken
    assert where == "/done"
    assert sent_with["webhook-id"] == f"job_{job}"
    document = Webhook(SECRET).verify(told.decode(), {name.lower(): value for name, value in sent_with.items()})
    assert document == client.get(f"/v1/jobs/{job}").json()
    assert document["status"] == "completed"


def test_a_cancelled_job_tells_it_too(client, receiver):
    receiver.taken.clear()
    body = BODY | {"steps": 1000, "num_images": 8, "callback_url": f"http://{receiver.host}/"}
    path = client.post(AND, json=body, headers=ASYNC).headers["location"]
    client.delete(path)
    taken(receiver, 1)
    assert json.loads(receiver.taken[0][2])["status"] == "cancelled"


def test_what_is_owed_is_sent_by_whoever_does_the_job_after_a_restart(models, receiver, tmp_path, monkeypatch):
    monkeypatch.setattr("service.callbacks._LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("service.callbacks._FIRST_PAUSE_S", 0.05)
    receiver.taken.clear()
    settings = Settings(
        database=f"sqlite:///{tmp_path}/jobs.sqlite",
        artifacts=str(tmp_path / "files"),
        running_rows=1,
        grace_s=0,
        preload=False,
        callback_hosts=receiver.host,
        callback_secret=SECRET,
        callback_private=True,
    )

    def service():
        app = create_app(settings, catalog=Catalog.of(models))
        app.state.services.callbacks._resolve = names(LOCAL)[0]
        return TestClient(app)

    with service() as one:
        body = BODY | {"steps": 40, "callback_url": f"http://{receiver.host}/done"}
        path = one.post(AND, json=body, headers=ASYNC).headers["location"]
    assert receiver.taken == []
    receiver.statuses = [500]
    with service() as two:
        taken(receiver, 2)
        assert [json.loads(told) for _, _, told in receiver.taken] == [two.get(path).json()] * 2
        assert json.loads(receiver.taken[0][2])["status"] == "completed"
    with service():
        time.sleep(0.3)
    assert len(receiver.taken) == 2


def test_callbacks_are_for_asynchronous_requests_and_allowed_hosts(client, receiver):
    url = f"http://{receiver.host}/"
    refused = client.post(AND, json=BODY | {"callback_url": url})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {"pointer": "#/callback_url", "detail": "callback_url is for asynchronous requests: send Prefer: respond-async"}
    ]
    refused = client.post(AND, json=BODY | {"callback_url": "https://other.example/"}, headers=ASYNC)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/callback_url")
    images = {"prompt": "a", "superdiff": {"steps": 2, "callback_url": url}}
    refused = client.post("/v1/images/generations", json=images)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == "superdiff.callback_url"


def test_without_hosts_there_are_no_callbacks(models):
    with TestClient(create_app(Settings(database="memory:"), catalog=Catalog.of(models))) as client:
        refused = client.post(AND, json=BODY | {"callback_url": "https://hooks.example/"}, headers=ASYNC)
    assert refused.status_code == 422
    assert "this service calls nobody back" in refused.json()["detail"]


PAGE = "https://page.example"
ASKS = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def test_pages_of_other_origins_are_told_nothing_unless_they_are_named(models, client):
    for answer in client.options(AND, headers=ASKS), client.get("/v1/models", headers={"Origin": PAGE}):
        assert not [name for name in answer.headers if "access-control" in name]
    settings = Settings(database="memory:", cors_origins=f"{PAGE}, http://localhost:3000")
    with TestClient(create_app(settings, catalog=Catalog.of(models))) as open_to_pages:
        asked = open_to_pages.options(AND, headers=ASKS)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in asked.headers
        told = open_to_pages.get("/v1/jobs/none", headers={"Origin": PAGE})
        assert told.status_code == 404
        assert told.headers["access-control-allow-origin"] == PAGE
        assert "Retry-After" in told.headers["access-control-expose-headers"]
        stranger = open_to_pages.get("/v1/models", headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_any_origin_with_credentials_is_refused_at_start():
    assert Settings(cors_origins="*").cors_origins == ["*"]
    assert Settings(cors_origins=PAGE, cors_credentials=True)
    with pytest.raises(ValueError, match=r"cors_origins may not be \* where cors_credentials is set"):
        Settings(cors_origins="*", cors_credentials=True)


@pytest.mark.parametrize("origin", ["page.example", "https://page.example/", "https://*.example", "null", "HTTPS://a"])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ValueError, match="an origin is http"):
        Settings(cors_origins=origin)
