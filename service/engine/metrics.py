"""What operators watch: Prometheus metrics of one engine, in a registry of its own."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 96, 128, 256, 512)
_WAITS: Final = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics; every engine has its own registry, so that two in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.waiting = self._gauge("waiting_jobs", "Jobs in the queue.")
        self.running = self._gauge("running_jobs", "Jobs that take steps.")
        self.running_rows = self._gauge("running_rows", "Network rows of the running jobs.")
        self.forward_rows = self._gauge("forward_rows_limit", "Rows that the latest forward could take.")
        self.rows = self._counter("rows", "Network rows computed.")
        self.steps = self._counter("steps", "Joint steps taken.")
        self.batch_rows = self._histogram("batch_rows", "Rows of a joint step.", _ROWS)
        self.step_seconds = self._histogram("step_seconds", "Duration of a joint step.")
        self.decode_seconds = self._histogram("decode_seconds", "Duration of a decode.")
        self.wait_seconds = self._histogram("wait_seconds", "From submission to the first step.", _WAITS)
        self.jobs = self._counter("jobs", "Jobs that ended, by how.", "outcome")
        self.snapshots = self._counter("snapshots", "Snapshots of running jobs, to resume them by.")
        self.refused = self._counter("refused_jobs", "Jobs that found no place.")
        self.callbacks = self._counter("callbacks", "Callbacks that ended, by how.", "outcome")
        self.out_of_memory = self._counter("out_of_memory", "Times that memory ran out and the work was split.")
        self.prompts = self._counter("prompts", "Prompts needed, by whether they were encoded already.", "cache")

    def _gauge(self, name: str, told: str) -> Gauge:
        return Gauge(f"superdiff_{name}", told, registry=self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"superdiff_{name}", told, labels, registry=self.registry)

    def _histogram(self, name: str, told: str, buckets: tuple[float, ...] = Histogram.DEFAULT_BUCKETS) -> Histogram:
        return Histogram(f"superdiff_{name}", told, buckets=buckets, registry=self.registry)
