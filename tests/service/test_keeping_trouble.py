"""What becomes of jobs when they cannot be written down: a full disk, a locked database, lost files."""

import errno
import os
import shutil
import sqlite3
import subprocess
import tempfile
import time
from contextlib import contextmanager

import pytest

from service.store import database
from tests.service.test_keeping import AND, ASYNC, BODY, ended, serve  # noqa: F401
from tests.waits import until

PATIENT = BODY | {"steps": 40}
# Longer than it takes to fill a disk, see it and free it on a busy machine.
LONG = BODY | {"steps": 1000}


class Disk:
    """A folder that can be made full: a small file system of its own where this machine allows it."""

    def __init__(self, folder, monkeypatch):
        self.folder, self._monkeypatch = folder, monkeypatch
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
        self.real = os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0

    def fill(self):
        if not self.real:

            def full(*args, **kwargs):
                raise OSError(errno.ENOSPC, "No space left on device")

            self._monkeypatch.setattr(tempfile, "mkstemp", full)
            return
        with (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    def free(self):
        self._monkeypatch.undo()
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self):
        if self.real:
            subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    made = Disk(tmp_path / "disk", monkeypatch)
    yield made
    made.free()
    made.close()


def ready(client):
    return client.get("/readyz").status_code == 200


# Of two workers, the one that has nothing to write does not know that it could not.
@pytest.mark.embedded
def test_a_full_disk_fails_the_job_and_not_the_service(serve, disk):  # noqa: F811
    with serve(artifacts=str(disk.folder / "files"), checkpoint_s=0) as client:
        path = client.post(AND, json=PATIENT, headers=ASYNC).headers["location"]
        until(lambda: client.get(path).json()["status"] == "running")
        disk.fill()
        info = ended(client, path)
        assert info["status"] == "failed"
        assert "disk of the artifacts is full" in info["error"]
        until(lambda: not ready(client))
        assert "full" in client.get("/readyz").json()["detail"]
        refused = client.post(AND, json=BODY, headers=ASYNC)
        assert refused.status_code == 507
        assert "full" in refused.json()["detail"]
        assert client.post(AND, json=BODY).status_code == 200
        disk.free()
        until(lambda: ready(client))
        again = client.post(AND, json=BODY, headers=ASYNC).headers["location"]
        assert ended(client, again)["status"] == "completed"
        assert client.get(path).json()["status"] == "failed"
    with serve(artifacts=str(disk.folder / "files")) as client:
        assert client.get(path).json() == info
        assert client.get(again).json()["status"] == "completed"


# Likewise.
@pytest.mark.embedded
def test_a_full_disk_costs_checkpoints_only_where_there_is_space_again_at_the_end(serve, disk):  # noqa: F811
    with serve(artifacts=str(disk.folder / "files"), checkpoint_s=0.01) as client:
        path = client.post(AND, json=LONG, headers=ASYNC).headers["location"]
        until(lambda: client.get(path).json()["step"] >= 2)
        disk.fill()
        until(lambda: not ready(client))
        disk.free()
        assert ended(client, path)["status"] == "completed"


@contextmanager
def locked(file):
    """Nobody else can write to a database."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


# Nobody can be told of what another process does but through the database.
@pytest.mark.embedded
def test_accepted_jobs_run_on_while_the_database_is_locked(serve, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(database, "_BUSY_S", 0.2)
    with serve() as client:
        path = client.post(AND, json=PATIENT, headers=ASYNC).headers["location"]
        until(lambda: client.get(path).json()["step"] >= 2)
        with locked(tmp_path / "jobs.sqlite"):
            refused = client.post(AND, json=BODY, headers=ASYNC)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert not ready(client)
            assert client.post(AND, json=BODY).status_code == 200
            until(lambda: client.get(path).json()["step"] == PATIENT["steps"])
            time.sleep(0.5)
            # Its end is told only once it is written.
            assert client.get(path).json()["status"] in {"running", "decoding"}
        assert ended(client, path)["status"] == "completed"
        until(lambda: ready(client))
        accepted = client.post(AND, json=BODY, headers=ASYNC)
        assert accepted.status_code == 202
        assert ended(client, accepted.headers["location"])["status"] == "completed"
        # Of the refused one nothing is left that would run.
        assert {job["status"] for job in client.get("/v1/jobs").json()["data"]} == {"completed"}


def test_a_folder_of_files_that_was_removed_is_made_again(serve, tmp_path):  # noqa: F811
    with serve() as client:
        first, second = (client.post(AND, json=BODY | {"seed": s}, headers=ASYNC).headers["location"] for s in (1, 2))
        ended(client, first)
        ended(client, second)
        shutil.rmtree(tmp_path / "files")
        third = client.post(AND, json=BODY, headers=ASYNC).headers["location"]
        assert ended(client, third)["status"] == "completed"
        lost = client.get(first).json()
        assert lost["status"] == "failed"
        assert "files of this job are lost" in lost["error"]
        assert client.get(f"{first}/images/0").status_code == 409
        assert client.delete(first).status_code == 200
        assert client.get(first).status_code == 404


def test_a_job_whose_known_picture_is_lost_fails_and_says_so(serve, tmp_path):  # noqa: F811
    with serve() as client:
        picture = client.post(AND, json=BODY).json()["images"][0]["b64_json"]
        for _ in range(2):  # so that two workers begin no other
            client.post(AND, json=BODY | {"steps": 1000}, headers=ASYNC)
        path = client.post(AND, json=BODY | {"image": picture, "strength": 0.5}, headers=ASYNC).headers["location"]
    shutil.rmtree(tmp_path / "files")
    with serve() as client:
        for job in client.get("/v1/jobs").json()["data"]:
            if f"/v1/jobs/{job['id']}" != path:
                client.delete(f"/v1/jobs/{job['id']}")
        info = ended(client, path)
        assert info["status"] == "failed"
        assert "lost or damaged" in info["error"]
