"""The database goes away under a server and comes back; what the server accepted is done."""

import time

import httpx

from tests.crash.test_kill import AND, WAIT_S, assert_all_succeeded_once, body, expected, submit
from tests.postgres import FAST
from tests.waits import until

AWAY_S = 10.0


def test_postgres_may_be_gone_for_ten_seconds(servers, postgres_server, postgres_url, tmp_path):
    asked = [body(1, steps=200), *(body(seed) for seed in range(2, 4))]
    pictures = expected(servers, asked)
    server = servers.start(database=postgres_url, artifacts=str(tmp_path / "files"), checkpoint_s=1)
    with httpx.Client(base_url=server.url, timeout=WAIT_S) as client:
        paths = [submit(server, f"key {i}", each) for i, each in enumerate(asked)]
        until(lambda: client.get(paths[0]).json()["step"] >= 2)
        postgres_server.stop()
        try:
            back = time.monotonic() + AWAY_S
            until(lambda: client.get("/readyz").status_code == 503)
            while True:
                refused = client.post(AND, json=body(9), headers={"Prefer": "respond-async"})
                assert refused.status_code == 503
                assert int(refused.headers["retry-after"]) >= 1
                assert "cannot be reached" in refused.json()["detail"]
                told = client.get("/readyz")
                assert told.status_code == 503
                assert told.json()["detail"].startswith("jobs cannot be written down: the store cannot be reached")
                assert client.get("/healthz").status_code == 200
                assert client.get(paths[0]).json()["status"] in {"queued", "running", "decoding"}
                if time.monotonic() > back:
                    break
                time.sleep(0.5)
            # What is in memory only is not touched.
            drawn = client.post(AND, json=asked[1], headers={"Accept": "image/png"})
            assert drawn.content == pictures[1]
            client.delete(drawn.headers["location"])
        finally:
            postgres_server.start(*FAST)
        until(lambda: client.get("/readyz").status_code == 200)
        assert_all_succeeded_once(server, paths, pictures, most_attempts=1)
        again = client.post(AND, json=body(9), headers={"Prefer": "respond-async"})
        assert again.status_code == 202
        until(lambda: client.get(again.headers["location"]).json()["status"] == "completed")
