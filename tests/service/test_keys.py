"""API keys: what is stored, who is let in, the file, and the commands."""

import asyncio
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from service.callers import (
    Allowance,
    Scope,
    UnauthorizedError,
    id_of,
    is_loopback,
    mint,
    of_address,
    verified,
)
from service.cli import app
from service.keyring import Keyring, NoKeysError
from service.settings import Settings
from service.store.keys import NoKeys
from service.store.port import StoreUnavailableError
from tests.service.keys import KeysIn

NOW = 1_000_000.0
GENERATE = frozenset({Scope.GENERATE})


def minted(name="me", **given):
    return mint(name, GENERATE, Allowance(), NOW, **given)


def run(coroutine):
    return asyncio.run(coroutine)


class Keys(NoKeys):
    """A store in a dictionary."""

    def __init__(self):
        self.kept = {}

    async def add(self, key):
        self.kept[key.id] = key

    async def find(self, key_id):
        return self.kept.get(key_id)

    async def all(self):
        return list(self.kept.values())

    async def revoke(self, key_id, when):
        self.kept[key_id] = replace(self.kept[key_id], revoked=when)

    async def used(self, key_id, when):
        self.kept[key_id] = replace(self.kept[key_id], last_used=when)


@pytest.fixture
def store():
    return Keys()


def test_keys_are_long_and_unlike_any_other():
    texts = {minted()[0] for _ in range(100)}
    assert len(texts) == 100
    assert all(len(text.split("_", 2)[2]) == 43 for text in texts)  # 32 bytes in base64


def test_the_owner_of_a_key_is_let_in_and_nobody_else(store):
    text, key = minted()
    other, _ = minted("other")
    run(store.add(key))
    assert run(verified(text, store, NOW)) == key
    for wrong in ("", "me", text[:-1], text + "x", text.upper(), f"sd_{key.id}_", f"sd_{key.id}_x", other, key.digest):
        with pytest.raises(UnauthorizedError, match="there is no such API key"):
            run(verified(wrong, store, NOW))


def test_a_key_ends_when_it_is_revoked_or_expires(store):
    text, key = minted(expires=NOW + 10)
    run(store.add(key))
    assert run(verified(text, store, NOW + 9))
    with pytest.raises(UnauthorizedError, match="'me' has expired"):
        run(verified(text, store, NOW + 10))
    run(store.revoke(key.id, NOW + 1))
    with pytest.raises(UnauthorizedError, match="'me' was revoked"):
        run(verified(text, store, NOW))
    # Only who has the key is told what became of it.
    with pytest.raises(UnauthorizedError, match="no such"):
        run(verified(text[:-1], store, NOW))


@pytest.mark.parametrize(
    ("host", "caller"),
    [
        ("127.0.0.1", "address:127.0.0.1"),
        ("::1", "address:::1"),
        ("::ffff:10.0.0.7", "address:10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "address:2001:db8:1:2::/64"),
        ("fe80::1%eth0", "address:fe80::/64"),
        ("testclient", "address:testclient"),
        (None, "address:unknown"),
    ],
)
def test_an_address_is_a_caller_and_of_ipv6_its_network(host, caller):
    assert of_address(host).id == caller


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "192.168.0.1", "example.com", "", "127.0.0.1.example.com")],
)
def test_which_addresses_are_the_machine_s_own(host, alone):
    assert is_loopback(host) is alone


def opened(store, **given):
    keyring = Keyring(clock=lambda: NOW)
    run(keyring.open(store, Settings(**given)))
    return keyring


def test_loopback_asks_for_no_key_until_there_is_one(store):
    assert not opened(store).asks
    _, key = minted(expires=NOW + 1)
    run(store.add(key))
    assert opened(store).asks
    assert not opened(store, allow_anyone=True).asks
    run(store.revoke(key.id, NOW))
    # Who had keys once is not left open by revoking the last.
    with pytest.raises(NoKeysError, match="superdiff keys create NAME"):
        opened(store)


@pytest.mark.parametrize("given", [{"host": "0.0.0.0"}, {"host": "::"}, {"host": "10.1.1.1"}, {"require_keys": True}])
def test_a_service_that_others_reach_needs_a_key(store, given):
    with pytest.raises(NoKeysError, match="superdiff keys create NAME"):
        opened(store, **given)
    _, key = minted()
    run(store.add(key))
    assert opened(store, **given).asks


def test_anyone_may_be_allowed_but_not_while_keys_are_required(store):
    assert not opened(store, host="0.0.0.0", allow_anyone=True).asks
    with pytest.raises(ValueError, match="exclude one another"):
        Settings(require_keys=True, allow_anyone=True)


def test_the_last_use_is_noted_once_a_minute(store):
    text, key = minted()
    run(store.add(key))
    now = [NOW]
    keyring = Keyring(clock=lambda: now[0])
    run(keyring.open(store, Settings()))
    seen = []
    for seconds in (0, 30, 59, 61):
        now[0] = NOW + seconds
        run(keyring.caller(text, None))
        seen.append(run(store.find(key.id)).last_used - NOW)
    assert seen == [0, 0, 0, 61]


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERDIFF_DATABASE", f"sqlite:///{tmp_path / 'keys.sqlite'}")

    def ask(*words):
        return CliRunner().invoke(app, ["keys", *words])

    return ask


def test_a_key_from_the_command_line_is_shown_once_and_works(command, tmp_path):
    made = command("create", "me", "--scope", "generate", "--scope", "read-metrics", "--expires-in", "2h", "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    text = told.pop("key")
    assert id_of(text) == told["id"]
    key = KeysIn(tmp_path / "keys.sqlite").find(told["id"])
    assert key.scopes == {Scope.GENERATE, Scope.READ_METRICS}
    assert key.expires - key.created == 7200
    listed = command("list", "--json")
    assert json.loads(listed.stdout) == [told]
    assert text not in listed.output + command("list").output


def test_a_key_is_on_a_line_of_its_own_for_scripts(command):
    made = command("create", "me", "--requests-per-minute", "5", "--concurrent-jobs", "2", "--pixel-steps-per-day", "9")
    assert id_of(made.stdout.strip())
    assert "only time" in made.stderr
    (line,) = command("list").stdout.splitlines()
    assert "me  valid  generate, 5 requests per minute, 2 concurrent jobs, 9 pixel steps per day" in line


def test_revoking_by_name_and_by_id(command):
    ids = [json.loads(command("create", name, "--json").stdout)["id"] for name in ("a", "b")]
    assert "revoked" in command("revoke", "a").stdout
    assert json.loads(command("revoke", ids[1], "--json").stdout)["revoked"] is not None
    again = json.loads(command("create", "a", "--json").stdout)["id"]
    assert json.loads(command("revoke", "a", "--json").stdout)["id"] == again
    assert command("revoke", "c").exit_code == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["", "--expires-in", "1d"], "1 to 100 printable"),
        (["a\nb"], "1 to 100 printable"),
        (["a", "--expires-in", "1y"], "such as 90d"),
        (["a", "--expires-in", "0d"], "such as 90d"),
        (["a", "--scope", "all"], "read-metrics"),
        (["a", "--concurrent-jobs", "0"], "concurrent-jobs"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(command, words, told):
    refused = command("create", *words)
    assert refused.exit_code == 2
    assert told in refused.output


def test_no_database_is_made_by_looking(command, tmp_path):
    assert json.loads(command("list", "--json").stdout) == []
    assert command("revoke", "me").exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_database_in_memory_keeps_no_keys(command, monkeypatch):
    monkeypatch.setenv("SUPERDIFF_DATABASE", "memory:")
    refused = command("create", "me")
    assert refused.exit_code == 2
    assert "SUPERDIFF_DATABASE" in refused.output


def test_a_use_that_cannot_be_noted_refuses_nobody(store, caplog):
    text, key = minted()
    run(store.add(key))
    keyring = opened(store)

    async def broken(key_id, when):
        raise StoreUnavailableError("busy")

    store.used = broken
    assert run(keyring.caller(text, None)).id == f"key:{key.id}"
    assert "not noted: busy" in caplog.text


def test_serve_says_how_to_make_a_key(command):
    refused = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "Create one: superdiff keys create NAME" in refused.output
    assert "--allow-anyone" in refused.output
