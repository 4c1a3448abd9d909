"""The catalogue read anew by a running service: by POST /v1/admin/reload, and what /v1/models says of failures."""

import pytest
from fastapi.testclient import TestClient

from pipelines.catalog import Catalog
from service.app import create_app
from service.engine.engine import Engine
from service.settings import Settings
from tests.service.held import Held
from tests.service.test_api import wait_until_ready

OR = "/v1/superpose/or"
RELOAD = "/v1/admin/reload"
HERE = ("127.0.0.1", 5000)


@pytest.fixture
def path(folders, tmp_path):
    """A catalogue of a pixel model, and one whose folder is not there."""
    (tmp_path / "one").symlink_to(folders / "pixels")
    path = tmp_path / "superdiff.toml"
    path.write_text('[models.one]\nsource = "one"\n[models.gone]\nsource = "two"\n')
    return path


def body(model, **more):
    return {"components": [{"prompt": "", "model": model}], "steps": 2, "guidance_scale": 1, **more}


def test_a_reload_mends_what_failed_and_drops_no_job(path, folders, tmp_path):
    catalog = Catalog.read(path, "cpu")
    held = Held(catalog)
    with TestClient(create_app(Settings(), catalog=catalog, engine=Engine(held)), client=HERE) as client:
        wait_until_ready(client)
        listed = client.get("/v1/models").json()["data"]
        assert [(m["id"], m["loaded"]) for m in listed] == [("one", True), ("gone", False)]
        assert listed[0]["error"] is None
        assert listed[1]["error"].startswith("gone: its source must be a diffusers folder")
        refused = client.post(OR, json=body("gone"))
        assert refused.status_code == 503
        assert "retry-after" not in refused.headers
        assert refused.json()["detail"] == listed[1]["error"] + "; it stays so until the service's operator mends it"
        assert str(tmp_path) not in refused.text + str(listed)

        running = client.post(OR, json=body("one"), headers={"Prefer": "respond-async"}).json()["id"]
        assert held.stepping.wait(60)
        (tmp_path / "two").symlink_to(folders / "pixels")
        path.write_text('[models.gone]\nsource = "two"\n[models.new]\nsource = "one"\n')
        told = client.post(RELOAD)
        assert told.status_code == 200
        assert told.json() == {"added": ["new"], "changed": ["gone"], "removed": ["one"], "failed": {}}
        assert [(m["id"], m["loaded"]) for m in client.get("/v1/models").json()["data"]] == [
            ("gone", True),
            ("new", True),
        ]
        assert client.post(OR, json=body("one")).status_code == 404
        held.go.set()
        assert client.post(OR, json=body("gone")).status_code == 200
        while (job := client.get(f"/v1/jobs/{running}").json())["status"] not in {"completed", "failed"}:
            pass
        assert (job["status"], job["models"]) == ("completed", ["one"])


def test_a_corrupt_file_keeps_the_catalogue_and_says_why(path):
    catalog = Catalog.read(path, "cpu")
    with TestClient(create_app(Settings(), catalog=catalog), client=HERE) as client:
        wait_until_ready(client)
        path.write_text("[models.one")
        told = client.post(RELOAD)
        assert told.status_code == 409
        assert told.json()["detail"].startswith("the catalogue stays as it was: superdiff.toml: not TOML: ")
        assert client.post(OR, json=body("one")).status_code == 200


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("192.0.2.7", {}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, 403),
        ("127.0.0.1", {"Origin": "http://example.com"}, 403),
    ],
)
def test_only_the_machine_itself_may_reload(models, address, headers, status):
    app = create_app(Settings(preload=False), catalog=Catalog.of({"one": models["one"]}))
    with TestClient(app, client=(address, 5000)) as client:
        assert client.post(RELOAD, headers=headers).status_code == status
