"""OpenTelemetry: a span for every request, and for its job's wait, run and decoding. Off unless OTEL_* asks for it."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from service.engine.job import Job

_ASKING: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")
_UNTRACED: Final = "healthz,readyz,metrics"


class TracingError(Exception):
    """The environment asks for traces that cannot be sent."""


def wanted() -> bool:
    """Whether the environment asks for traces."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in _ASKING)


def provider_from_environment() -> "TracerProvider":
    """A provider that sends spans by OTLP over HTTP, set up by the standard OTEL_* variables.

    Raises:
        TracingError: The extra ``otel`` is not installed, or another exporter is asked for.
    """
    if (exporter := os.environ.get("OTEL_TRACES_EXPORTER", "otlp")) not in {"", "otlp"}:
        raise TracingError(f"OTEL_TRACES_EXPORTER: {exporter!r} is not allowed; it must be otlp or none")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        detail = "OTEL_* asks for traces, but the extra is not installed: pip install 'superdiff-serve[otel]'"
        raise TracingError(detail) from error
    own = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "superdiff-serve"}
    provider = TracerProvider(resource=Resource.create(own))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes the spans.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry import context

        self._provider, self._context = provider, context
        self._tracer = provider.get_tracer("superdiff")

    def instrument(self, app: FastAPI) -> None:
        """Let every request but those of health and metrics have a span."""
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(app, tracer_provider=self._provider, excluded_urls=_UNTRACED)

    def watch(self, job: "Job") -> Callable[[], None]:
        """What tells of a job when it is over; its spans hang on that of the request that is being answered now."""
        return partial(self._tell, job, self._context.get_current())

    def _tell(self, job: "Job", parent: Any) -> None:
        """The spans of a job that is over: queue, run, decode, as far as it came."""
        from opentelemetry.trace import Status, StatusCode

        times = [job.submitted, job.started or job.ended, job.decoding or job.ended, job.ended]
        if not job.started:
            times[2] = job.ended
        facts = {"superdiff.job": job.id, "superdiff.models": job.plan.models, "superdiff.outcome": job.phase.value}
        offset = time.time() - time.monotonic()
        for name, begin, end in zip(("queue", "run", "decode"), times[:-1], times[1:], strict=True):
            if end <= begin:
                continue
            start_ns, end_ns = (int(1e9 * (at + offset)) for at in (begin, end))
            span = self._tracer.start_span(f"superdiff {name}", parent, attributes=facts, start_time=start_ns)
            if name == "run":
                span.set_attributes({"superdiff.steps": job.index, "superdiff.rows": job.rows})
            if end == job.ended and (error := job.result.exception()) is not None:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            span.end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            shutdown()
