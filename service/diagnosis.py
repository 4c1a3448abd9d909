"""What may keep the service from working on this machine, found by looking: ``superdiff doctor``.

A check is a function from :class:`Subject` to findings, and a name in :data:`CHECKS`.
"""

import asyncio
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pipelines.catalog import Catalog
from pipelines.entry import Entry, cannot_be_source
from pipelines.errors import CatalogError, PipelineError
from service.settings import Settings
from service.store.port import StoreError

_LEAST_FREE: Final = 1 << 30  # bytes of disk, below which downloads and logs soon fail
_DATABASE_S: Final = 10.0  # after which a database that does not answer is given up
# Variables of the prefix that are no settings of the service: of the command line, and of the test suite.
_OTHER_VARIABLES: Final = (
    "SUPERDIFF_KEY",
    "SUPERDIFF_URL",
    "SUPERDIFF_REQUIRE_",
    "SUPERDIFF_BEHIND",
)
_PREFIX: Final = "SUPERDIFF_"


@dataclass(frozen=True, slots=True)
class Subject:
    """What is looked at.

    Attributes:
        settings: As the service would read them.
        environment: The process's.
        load: Whether each model is loaded.
    """

    settings: Settings
    environment: Mapping[str, str]
    load: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the page.

    Attributes:
        about: What it is about.
        told: What was found.
        problem: What is wrong, and what to do about it; None where nothing is.
    """

    about: str
    told: str
    problem: str | None = None


Check = Callable[[Subject], Iterable[Finding]]


def diagnose(subject: Subject) -> dict[str, list[Finding]]:
    """The findings of every check, by its name; a check that fails itself is a problem."""
    found: dict[str, list[Finding]] = {}
    for name, check in CHECKS.items():
        found[name] = []
        try:
            found[name].extend(check(subject))
        except Exception as error:
            detail = f"this check failed: {type(error).__name__}: {error}"
            found[name].append(Finding(name, "unknown", detail))
    return found


def _software(_: Subject) -> Iterator[Finding]:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    yield Finding("superdiff", f"{version('superdiff-serve')} on Python {platform.python_version()}")
    yield Finding("torch", f"{torch.__version__}, {built}, processor {torch.backends.cpu.get_cpu_capability()}")
    for name in ("diffusers", "transformers"):
        yield Finding(name, version(name))


def _device(subject: Subject) -> Iterator[Finding]:
    import torch

    asked, there = subject.settings.device, torch.cuda.is_available()
    device = asked or ("cuda" if there else "cpu")
    if device.startswith("cuda") and not there:
        why = "torch is built without CUDA" if torch.version.cuda is None else "its driver or the GPU is missing"
        yield Finding("device", device, f"there is no CUDA device: {why}; set SUPERDIFF_DEVICE=cpu or mend it")
        return
    if not device.startswith("cuda"):
        yield Finding("device", device)
        return
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        yield Finding("device", device, f"there are {torch.cuda.device_count()} CUDA devices; the first is cuda:0")
        return
    free, total = torch.cuda.mem_get_info(index)
    yield Finding("device", f"{device}, {torch.cuda.get_device_name(index)}, {_gib(free)} of {_gib(total)} free")


def _processor(subject: Subject) -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads, told = torch.get_num_threads(), f"{cores} processors for this process"
    if threads > cores:
        problem = f"torch computes with {threads} threads on {cores} processors; set OMP_NUM_THREADS={cores}"
        yield Finding("threads", f"{threads} threads, {told}", problem)
    else:
        yield Finding("threads", f"{threads} threads, {told}")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        if value := subject.environment.get(name):
            yield Finding(name, value)


def _memory(_: Subject) -> Iterator[Finding]:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    if sizes:
        yield Finding("memory", f"{_gib(sizes['MemAvailable'])} of {_gib(sizes['MemTotal'])} available")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        yield Finding("memory of the container", _gib(int(text)))


def _catalogue(subject: Subject) -> Iterator[Finding]:
    path, device = subject.settings.catalog, subject.settings.device
    try:
        fast = subject.settings.fast
        catalog = Catalog.read(path, device, fast=fast) if path else Catalog.builtin(device, fast=fast)
    except CatalogError as error:
        yield Finding("catalogue", str(path), f"{error}; the service does not start with it")
        return
    yield Finding("catalogue", f"{path or 'the models that ship'}: {len(catalog.names)} models")
    for name in catalog.names:
        yield from _model(catalog, catalog.entry(name), load=subject.load)


def _model(catalog: Catalog, entry: Entry, *, load: bool) -> Iterator[Finding]:
    about = f"model {entry.name}"
    source = f"hub:{entry.hub}" if entry.hub else str(entry.source)
    if not entry.hub and (reason := cannot_be_source(entry.source)):
        yield Finding(about, source, f"{reason}; mend `source` in the catalogue or put the model there")
        return
    if not load:
        yield Finding(about, f"{source}, not loaded")
        for lora, file in entry.loras.items():
            problem = None if file.exists() else "there is no such file; mend `loras` in the catalogue or put it there"
            yield Finding(f"LoRA {lora} of {entry.name}", str(file), problem)
        return
    try:
        card = catalog.get(entry.name).card
    except PipelineError as error:
        yield Finding(about, source, str(error))
        return
    yield Finding(about, f"{source}, {card.parameters / 1e6:.1f} M parameters, {card.memory / 2**20:.0f} MiB loaded")
    for lora in entry.loras:
        yield Finding(f"LoRA {lora} of {entry.name}", str(entry.loras[lora]), card.broken_adapters.get(lora))


def _disk(subject: Subject) -> Iterator[Finding]:
    home = subject.environment.get("HF_HOME") or str(Path.home() / ".cache/huggingface")
    folders = {"cache of the hub": Path(home), "temporary files": Path(subject.environment.get("TMPDIR") or "/tmp")}  # noqa: S108
    settings = subject.settings
    if settings.uses_state:
        folders["state"] = settings.state.expanduser()
    if settings.artifacts and ":" not in settings.artifacts:  # else a URL
        folders["artifacts"] = Path(settings.artifacts).expanduser()
    for about, folder in folders.items():
        there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
        free = shutil.disk_usage(there).free
        problem = None
        if free < _LEAST_FREE:
            problem = f"only {_gib(free)} are free; make room, or move the folder"
        elif not os.access(there, os.W_OK):
            problem = "this user may not write there; change its owner, or move the folder"
        yield Finding(about, f"{folder}, {_gib(free)} free", problem)


def _database(subject: Subject) -> Iterator[Finding]:
    from service.store.inspection import inspect
    from service.store.keys import is_database
    from service.store.schema import VERSION

    url, about = subject.settings.database_url, "database"
    shown = without_password(url)
    try:
        if not is_database(url):
            yield Finding(about, f"{shown} jobs and keys end with the process")
            return
        found = asyncio.run(asyncio.wait_for(inspect(url), _DATABASE_S))
    except TimeoutError:
        yield Finding(about, shown, f"it does not answer within {_DATABASE_S:g} s; check SUPERDIFF_DATABASE")
        return
    except StoreError as error:
        yield Finding(about, shown, f"{error}; the service does not start with it")
        return
    if found is None:
        yield Finding(about, f"{shown}, not there yet: it is made when the service starts")
    elif found.version is None:
        yield Finding(about, f"{shown}, without tables yet: they are made when the service starts")
    elif not found.known:
        detail = "a newer version of this program has written it, and this one does not start with it; run that one"
        yield Finding(about, f"{shown}, version {found.version}", detail)
    else:
        behind = "" if found.version == VERSION else f", brought to {VERSION} at the next start; back it up before"
        yield Finding(about, f"{shown}, version {found.version}{behind}")
        counts = ", ".join(f"{count} {state}" for state, count in found.jobs.items())
        yield Finding("jobs", counts or "none")


def _settings(subject: Subject) -> Iterator[Finding]:
    for name, field in Settings.model_fields.items():
        value = getattr(subject.settings, name)
        if value != field.get_default(call_default_factory=True):
            yield Finding(f"{_PREFIX}{name.upper()}", without_password(str(value)))
    known = {f"{_PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name in sorted(subject.environment):
        if name.startswith(_PREFIX) and name not in known and not name.startswith(_OTHER_VARIABLES):
            yield Finding(name, "in the environment", "there is no such setting; docs/operations.md lists them")


CHECKS: Final[Mapping[str, Check]] = {
    "software": _software,
    "device": _device,
    "processor": _processor,
    "memory": _memory,
    "catalogue": _catalogue,
    "disk": _disk,
    "database": _database,
    "settings that are not default": _settings,
}


def without_password(value: str) -> str:
    """A setting as it may be shown: an address without its password."""
    try:
        password = urlsplit(value).password
    except ValueError:
        return value
    return value.replace(f":{password}@", ":***@") if password else value


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
