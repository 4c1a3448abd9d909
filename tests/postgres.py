"""A PostgreSQL server of the tests' own, in a temporary folder, and empty databases on it.

    from tests.postgres import *  # noqa: F403

A test that asks for the fixture ``postgres_url`` gets the address of an empty database. Without PostgreSQL on the
machine such tests are skipped, unless SUPERDIFF_REQUIRE_POSTGRES=1 says that they must run.
"""

import os
import pwd
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

__all__ = ["emptied_database", "postgres_server", "postgres_url"]

# The data are thrown away after the tests: nothing needs to survive a crash of the machine. It does survive one of the
# server.
FAST = ("fsync=off", "full_page_writes=off", "autovacuum=off")
SMALL = ("shared_buffers=32MB", "max_connections=60", "max_worker_processes=2", "jit=off")


class Server:
    """A running server that listens on a socket in its folder alone."""

    def __init__(self, folder, programs, user):
        self.folder, self._programs, self._user = folder, programs, user
        self._process = None

    def start(self, *options):
        """Make the cluster, if it is new, and wait until the server answers."""
        data = self.folder / "data"
        if not data.exists():
            self._run("initdb", "-D", str(data), "-U", "superdiff", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        settings = [word for option in (*SMALL, *options) for word in ("-c", option)]
        command = self._as_user("postgres", "-D", str(data), "-h", "", "-k", str(self.folder), *settings)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        for _ in range(200):
            answers = subprocess.run(
                [self._programs / "pg_isready", "-h", self.folder, "-U", "superdiff", "-d", "postgres", "-q"],
                check=False,
            )
            if answers.returncode == 0:
                return
            if self._process.poll() is not None:
                break
            try:
                self._process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()}")

    def stop(self):
        """End it at once."""
        # What was started as another user ends by that user's own program, for who may not send it signals.
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")
        self._process.wait(10)

    def execute(self, *statements, database="postgres"):
        """Run statements, each in its own transaction."""
        words = [word for statement in statements for word in ("-c", statement)]
        self._run("psql", "-h", str(self.folder), "-U", "superdiff", "-d", database, "-q", "-o", os.devnull, *words)

    def create(self, name):
        """The address of a new empty database."""
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://superdiff@/{name}?host={self.folder}"

    def clear(self, name):
        """Empty a database, whoever is connected to it."""
        others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"  # noqa: S608
        self.execute(f"{others} AND pid <> pg_backend_pid()")
        self.execute(
            "SET client_min_messages = error", "DROP SCHEMA public CASCADE; CREATE SCHEMA public", database=name
        )

    def _as_user(self, program, *arguments):
        command = [str(self._programs / program), *arguments]
        return command if self._user is None else ["setpriv", *self._user, "--clear-groups", *command]

    def _run(self, program, *arguments):
        done = subprocess.run(
            self._as_user(program, *arguments), capture_output=True, text=True, check=False, cwd=self.folder
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr}")


def programs():
    """The folder of the newest server's programs; None where there is none."""
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    return debian[-1].parent if debian else None


@contextmanager
def server(*options):
    """A server with these settings, for as long as the context is open."""
    found = programs()
    if found is None:
        raise RuntimeError("PostgreSQL is not installed; scripts/install_test_tools.sh does it")
    # A socket's path may have 107 bytes: a folder of pytest's is too deep.
    with TemporaryDirectory(prefix="pg-") as folder:
        user = None
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            name = pwd.getpwnam("nobody")
            os.chown(folder, name.pw_uid, name.pw_gid)
            user = (f"--reuid={name.pw_uid}", f"--regid={name.pw_gid}")
        made = Server(Path(folder), found, user)
        made.start(*options)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def postgres_server():
    """A running server; one for all tests of a process."""
    if programs() is None:
        if os.environ.get("SUPERDIFF_REQUIRE_POSTGRES") == "1":
            pytest.fail("SUPERDIFF_REQUIRE_POSTGRES=1, but PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed; scripts/install_test_tools.sh does it")
    with server(*FAST) as made:
        yield made


@pytest.fixture(scope="session")
def emptied_database(postgres_server):
    """A database that is emptied before each test that asks for it by ``postgres_url``."""
    return postgres_server.create("emptied")


@pytest.fixture
def postgres_url(postgres_server, emptied_database):
    """The address of an empty database. Each test gets the same one: making one takes half a second."""
    postgres_server.clear("emptied")
    return emptied_database
