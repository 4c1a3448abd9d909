import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
import warnings
from pathlib import Path

import pytest

from service.store.artifacts import (
    DamagedArtifactError,
    FolderArtifacts,
    RemoteArtifacts,
    UnknownArtifactError,
    address_of,
    open_artifacts,
)
from service.store.memory import MemoryStore
from service.store.port import DiskFullError, StoreUnavailableError, UnknownJobError
from service.store.records import Checkpoint, Ending, JobState
from service.store.retention import Forgotten, Retention, sweep
from tests.service.store.made import added, held, job

pytestmark = pytest.mark.anyio
UNKNOWN = "0" * 64


@pytest.fixture(scope="module")
def bucket():
    """A bucket of a server of this machine that speaks S3, where both packages are installed."""
    why = "pip install -c constraints.txt 's3fs' 'moto[server]' to try artifacts on s3://"
    s3fs = pytest.importorskip("s3fs", reason=why)
    # A release of moto's own dependencies may warn; that is not this product's matter.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pytest.importorskip("moto.server", reason=why).ThreadedMotoServer("127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "any")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "any")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem().mkdir("superdiff")
        yield "s3://superdiff"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["folder", "memory://", "s3://"])
def artifacts(request, tmp_path):
    """Empty ones, of each kind."""
    if request.param == "folder":
        return open_artifacts(str(tmp_path / "deep" / "artifacts"))
    root = request.getfixturevalue("bucket") if request.param == "s3://" else "memory:/"
    return open_artifacts(f"{root}/{uuid.uuid4().hex}/artifacts")


async def test_what_another_process_stored_again_is_not_removed(artifacts):
    """What was seen of it before, by a listing for example, does not count."""
    address = await artifacts.put(b"x")
    await artifacts.all()
    between = time.time()
    await asyncio.sleep(0.02)
    store_elsewhere(artifacts, address, b"x")
    assert not await artifacts.remove(address, between)
    assert await artifacts.get(address) == b"x"


def store_elsewhere(artifacts, address, data):
    """Store what a file holds, unseen by these artifacts."""
    if isinstance(artifacts, FolderArtifacts):
        FolderArtifacts(artifacts._folder)._put(data, durable=True)
        return
    system = type(artifacts._system)(skip_instance_cache=True)
    system.pipe_file(artifacts._place(address), data)


async def test_a_server_that_cannot_be_reached_is_told_as_such(bucket, monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    artifacts = open_artifacts("s3://superdiff/artifacts")
    try:
        for work in (artifacts.put(b"x"), artifacts.get(UNKNOWN), artifacts.all(), artifacts.remove(UNKNOWN, 0)):
            with pytest.raises(StoreUnavailableError):
                await work
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


async def test_a_bucket_that_is_not_there_is_told_as_such(bucket):
    with pytest.raises(StoreUnavailableError):
        await open_artifacts("s3://nowhere/artifacts").put(b"x")


async def test_bytes_return_by_the_digest_of_what_they_are(artifacts):
    assert await artifacts.all() == []
    address = await artifacts.put(b"a picture")
    assert address == address_of(b"a picture")
    assert await artifacts.get(address) == b"a picture"
    assert await artifacts.get(await artifacts.put(b"")) == b""


async def test_equal_bytes_are_one_file_however_many_store_them_at_once(artifacts):
    data = os.urandom(100_000)
    assert set(await asyncio.gather(*(artifacts.put(data) for _ in range(8)))) == {address_of(data)}
    (known,) = await artifacts.all()
    assert (known.address, known.size) == (address_of(data), 100_000)
    assert abs(known.used - time.time()) < 60


@pytest.mark.parametrize("address", [UNKNOWN, "", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
async def test_what_is_no_address_of_a_file_is_not_there(artifacts, address):
    await artifacts.put(b"x")
    with pytest.raises(UnknownArtifactError):
        await artifacts.get(address)


async def test_a_removed_file_is_gone_and_can_come_again(artifacts):
    address = await artifacts.put(b"x")
    assert await artifacts.remove(address, time.time() + 1)
    assert not await artifacts.remove(address, time.time() + 1)
    with pytest.raises(UnknownArtifactError):
        await artifacts.get(address)
    assert await artifacts.put(b"x") == address


async def test_a_file_that_is_stored_again_is_not_removed(artifacts):
    address = await artifacts.put(b"x")
    await asyncio.sleep(0.02)
    between = time.time()
    await asyncio.sleep(0.02)
    await artifacts.put(b"x")
    assert not await artifacts.remove(address, between)
    assert await artifacts.get(address) == b"x"


async def test_bytes_that_need_not_outlive_a_crash_wait_for_no_disk_until_somebody_needs_them(tmp_path, monkeypatch):
    artifacts, synced, sync = FolderArtifacts(tmp_path), [], os.fsync
    await artifacts.put(b"y")  # the folders are there, but for that of the next digest
    artifacts._place(address_of(b"x")).parent.mkdir()
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(str(Path(f"/proc/self/fd/{file}").readlink())), sync(file))
    )
    address = await artifacts.put(b"x", durable=False)
    assert await artifacts.get(address) == b"x"
    assert synced == []
    await artifacts.put(b"x")
    place = artifacts._place(address)
    assert synced == [str(place), str(place.parent)]


def damage(artifacts, address, data):
    if isinstance(artifacts, FolderArtifacts):
        artifacts._place(address).write_bytes(data)
    else:
        artifacts._system.pipe_file(artifacts._place(address), data)


@pytest.mark.parametrize("data", [b"other", b"", b"a pictur", b"A PICTURE"])
async def test_a_damaged_file_is_told_as_such_and_mended_by_storing_it_again(artifacts, data):
    address = await artifacts.put(b"a picture")
    damage(artifacts, address, data)
    with pytest.raises(DamagedArtifactError, match=address):
        await artifacts.get(address)
    await artifacts.put(b"a picture")
    assert await artifacts.get(address) == b"a picture"


# A folder


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EIO, StoreUnavailableError)])
async def test_a_disk_that_does_not_take_a_file_leaves_nothing_of_it(tmp_path, monkeypatch, number, error):
    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    artifacts = FolderArtifacts(tmp_path)
    await artifacts.put(b"before")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(error):
            await artifacts.put(b"x")
    assert len(await artifacts.all()) == 1
    assert list((tmp_path / "partial").iterdir()) == []
    assert await artifacts.get(await artifacts.put(b"x")) == b"x"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small disk")
async def test_a_disk_that_is_full_is_told_as_such(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", tmp_path], check=False).returncode:
        pytest.skip("this machine allows no mounts")
    try:
        artifacts = FolderArtifacts(tmp_path)
        kept = await artifacts.put(b"small")
        with pytest.raises(DiskFullError, match="free some space"):
            await artifacts.put(os.urandom(1 << 20))
        assert [each.address for each in await artifacts.all()] == [kept]
        assert await artifacts.put(os.urandom(1000))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


STORES = """
import asyncio, os, sys
from pathlib import Path
from service.store.artifacts import FolderArtifacts
async def main():
    artifacts = FolderArtifacts(Path(sys.argv[1]))
    while True:
        print(await artifacts.put(os.urandom(300_000)), flush=True)
asyncio.run(main())
"""


async def test_a_kill_leaves_whole_files_and_what_was_half_written_is_cleaned_up(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STORES, str(tmp_path)], stdout=subprocess.PIPE)
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    told = process.stdout.read().decode().split()
    process.wait(10)
    process.stdout.close()
    artifacts = FolderArtifacts(tmp_path)
    addresses = {each.address for each in await artifacts.all()}
    assert addresses >= set(told)
    for address in addresses:
        assert len(await artifacts.get(address)) == 300_000
    (tmp_path / "partial" / "left").write_bytes(b"half")
    artifacts.clean(time.time() - 60)
    assert (tmp_path / "partial" / "left").exists()
    artifacts.clean(time.time() + 60)
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_file_system_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no file system for nosuch://"):
        open_artifacts("nosuch://bucket/folder")


# Retention


async def finished(store, artifacts, ended, *contents, **fields):
    """The id of a job that made these files."""
    lease = await held(store, now=ended, **fields)
    made = {f"{i}": await artifacts.put(each) for i, each in enumerate(contents)}
    await store.finish(lease, Ending(JobState.COMPLETED, artifacts=made), ended)
    return lease.job_id


async def known(store, *ids):
    found = []
    for each in ids:
        try:
            found.append((await store.get(each)).id)
        except UnknownJobError:
            continue
    return found


async def contents(artifacts):
    return sorted([await artifacts.get(each.address) for each in await artifacts.all()])


async def test_old_jobs_are_forgotten_and_then_their_files(artifacts):
    store, now = MemoryStore(), time.time()
    old = await finished(store, artifacts, now - 100, b"old", b"shared")
    new = await finished(store, artifacts, now - 10, b"new", b"shared")
    assert await sweep(store, artifacts, Retention(50.0, 1000, unused_s=3600.0), now) == Forgotten(1, 0, 0)
    assert await known(store, old, new) == [new]
    assert await contents(artifacts) == [b"new", b"old", b"shared"]
    # As if the hours had passed.
    assert await sweep(store, artifacts, Retention(50.0, 1000, unused_s=-5.0), now) == Forgotten(0, 1, 3)
    assert await contents(artifacts) == [b"new", b"shared"]


async def test_where_files_are_too_large_the_longest_finished_jobs_go(artifacts):
    store, now = MemoryStore(), time.time()
    first = await finished(store, artifacts, now - 30, b"1" * 60, b"shared" * 10)
    second = await finished(store, artifacts, now - 20, b"2" * 60, b"shared" * 10)
    third = await finished(store, artifacts, now - 10, b"3" * 60)
    retention = Retention(1000.0, 240, unused_s=-5.0)
    assert await sweep(store, artifacts, retention, now) == Forgotten(0, 0, 0)
    # 180 and 60 that two jobs share; forgetting the first frees 60 of its 120.
    assert (await sweep(store, artifacts, Retention(1000.0, 130, unused_s=-5.0), now)).jobs == 2
    assert await known(store, first, second, third) == [third]
    assert await contents(artifacts) == [b"3" * 60]


async def test_what_a_job_refers_to_that_is_not_over_stays_whatever_its_size(artifacts):
    store, now = MemoryStore(), time.time()
    image, state = await artifacts.put(b"image" * 100), await artifacts.put(b"state" * 100)
    lease = await held(store, now=now - 1000, artifacts={"image": image})
    await store.checkpoint(lease, Checkpoint(state, 3))
    waiting = await artifacts.put(b"waiting")
    (job_id,) = await added(store, job(created=now - 1000, artifacts={"image": waiting}))
    unused = await artifacts.put(b"unused")
    assert await sweep(store, artifacts, Retention(0.0, 0, unused_s=-5.0), now) == Forgotten(0, 1, 6)
    assert {each.address for each in await artifacts.all()} == {image, state, waiting}
    assert unused not in {each.address for each in await artifacts.all()}
    assert await known(store, lease.job_id, job_id) == [lease.job_id, job_id]


async def test_a_file_that_comes_into_use_during_a_sweep_stays(artifacts):
    """A job stores a file again that nobody referred to, just after the sweep looked."""
    store, now = MemoryStore(), time.time()
    address = await artifacts.put(b"old content")
    references = store.references

    async def meanwhile():
        found = await references()
        await asyncio.sleep(0.02)
        await added(store, job(artifacts={"image": await artifacts.put(b"old content")}))
        return found

    store.references = meanwhile
    await asyncio.sleep(0.02)
    await sweep(store, artifacts, Retention(0.0, 1000, unused_s=0.0), time.time())
    assert await artifacts.get(address) == b"old content"
    assert now


async def test_many_old_jobs_are_forgotten_in_one_sweep():
    store = MemoryStore()
    for i in range(1201):
        lease = await store.add(job(created=float(i)), lease_to="w")
        await store.finish(lease, Ending(JobState.COMPLETED), float(i))
    empty = RemoteArtifacts(f"memory://{uuid.uuid4().hex}")
    assert await sweep(store, empty, Retention(0.0, 0), 1201.0) == Forgotten(1201, 0, 0)
