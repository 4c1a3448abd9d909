"""What a worker tells of itself through the store, as JSON: how it stands, and its metrics."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from pydantic import BaseModel, ConfigDict, ValidationError

from service.backend import WorkerState
from service.durable.blobs import UnreadableError
from service.store.port import Store

_LOG: Final = logging.getLogger(__name__)
VERSION: Final = 1
SILENT_S: Final = 15.0
"""A worker tells of itself every second; one that was silent for so long is not counted on."""
LABEL: Final = "worker"
"""Tells the samples of one worker from those of another."""


class Sample(BaseModel):
    """One number of a metric."""

    name: str
    labels: dict[str, str]
    value: float


class Family(BaseModel):
    """A metric."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    version: Literal[1] = VERSION
    state: WorkerState
    metrics: list[Family]


def write_presence(state: WorkerState, registry: CollectorRegistry) -> str:
    """How a worker stands, and what it measures, as JSON."""
    metrics = [
        Family(
            name=metric.name,
            documentation=metric.documentation,
            type=metric.type,
            samples=[Sample(name=each.name, labels=each.labels, value=each.value) for each in metric.samples],
        )
        for metric in registry.collect()
    ]
    return _Document(state=state, metrics=metrics).model_dump_json()


def read_presence(told: str) -> tuple[WorkerState, list[Family]]:
    """What a worker told.

    Raises:
        UnreadableError: A worker of another version told it.
    """
    try:
        document = _Document.model_validate_json(told)
    except ValidationError as error:
        raise UnreadableError("a worker of another version told this") from error
    return document.state, document.metrics


async def everybody(store: Store, now: float) -> dict[str, tuple[WorkerState, list[Family]]]:
    """What every worker told lately, by its id; one of another version is passed over, with a line in the log.

    Args:
        store: Where they told it.
        now: In Unix seconds.
    """
    found = {}
    for each in await store.present(now - SILENT_S):
        try:
            found[each.worker] = read_presence(each.told)
        except UnreadableError as error:
            _LOG.warning("worker %s: %s", each.worker, error)
    return found


def rates_of(workers: Iterable[WorkerState]) -> list[float]:
    """Network rows a second, of each worker whose pace is known."""
    return [worker.rate for worker in workers if worker.rate]


def merged(own: Iterable[Metric], told: Iterable[tuple[str, Sequence[Family]]]) -> list[Metric]:
    """The metrics of a process and of workers as one set: each worker's samples have its id as a label.

    Args:
        own: Of this process; those without a value but 0 are left out.
        told: The workers' ids, and what they told.
    """
    families: dict[str, Metric] = {}
    for metric in own:
        if any(sample.value for sample in metric.samples if not sample.name.endswith("_created")):
            families[metric.name] = metric
    for worker, metrics in told:
        for each in metrics:
            if each.name not in families:
                families[each.name] = Metric(each.name, each.documentation, each.type)
            for sample in each.samples:
                labels: dict[str, Any] = {**sample.labels, LABEL: worker}
                families[each.name].add_sample(sample.name, labels, sample.value)
    return list(families.values())
