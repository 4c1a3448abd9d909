"""What the OpenAPI document says against what the service does: requests that schemathesis draws from the document.

A few for each operation are drawn always, the same ones every time. SUPERDIFF_FUZZ_EXAMPLES=1000 draws as many for each
operation, and others every time.
"""

import os
from collections import Counter

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.engine import events

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings

EXAMPLES = os.environ.get("SUPERDIFF_FUZZ_EXAMPLES")
# What a request may cost, so that one that is valid is done in a moment.
BOUNDS = Settings(
    max_pixels=16 * 16 * 2, max_job_work=60, max_job_rows=8, max_image_pixels=64 * 64, caller_jobs=1 << 20
)
CONFIG = {
    "seed": 0 if EXAMPLES is None else None,
    "generation": {
        "max-examples": int(EXAMPLES or 5),
        "deterministic": EXAMPLES is None,
        "database": "none",
        "no-shrink": EXAMPLES is None,
    },
    "checks": {
        # Whether models compose, and what a request may cost, no schema tells.
        "positive_data_acceptance": {"enabled": False},
        # A request may set its own deadline, and miss it.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]},
    },
    # Clients of the WebUI send 0 for false and "20" for 20, and it takes them; so does the dialect.
    "operations": [
        {"include-path-regex": "^/(sdapi|internal)/", "checks": {"negative_data_rejection": {"enabled": False}}}
    ],
    "phases": {"coverage": {"enabled": EXAMPLES is not None}, "stateful": {"generation": {"max-examples": 3}}},
}


# Of bodies as large as they may be.
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(0 if EXAMPLES else 240)
def test_the_service_keeps_the_word_of_its_document(models):
    app = create_app(BOUNDS, catalog=Catalog.of(models))
    config = {key: value for key, value in CONFIG.items() if value is not None}
    document = schemathesis.openapi.from_asgi("/openapi.json", app, config=schemathesis.Config.from_dict(config))
    answers, failures = Counter(), []
    for event in engine.from_schema(document).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                answers.update(int(x.response.status_code) for x in recorder.interactions.values() if x.response)
                failures += [
                    f"{recorder.label}: {check.failure_info.failure.title}: {check.failure_info.failure.message}\n"
                    f"{check.failure_info.code_sample}"
                    for checks in recorder.checks.values()
                    for check in checks
                    if check.failure_info is not None
                ]
            case events.NonFatalError(info=info, label=label):
                failures.append(f"{label}: {info.title}: {info.message}")
            case events.FatalError(exception=exception):
                raise exception
    print(f"{answers.total()} requests, by status: {dict(sorted(answers.items()))}")
    assert not failures, f"{len(failures)} failures:\n\n" + "\n\n".join(sorted(set(failures)))
    assert answers.total() > 100
