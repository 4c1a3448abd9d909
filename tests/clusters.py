"""The service on a Ray cluster of its own, for tests; its process is :mod:`tests.ray_service`."""

import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import httpx

from tests import waits
from tests.servers import Server

# Replicas start one after another, each in a minute on a busy machine.
WAIT_S = 300
until = partial(waits.until, within_s=WAIT_S, every_s=0.1)
RAY = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else its replicas give way to whatever else the machine does, for minutes on a busy one.
    "RAY_worker_niceness": "0",
}
FEW = ("api_cpus=0.5", "target_s=1", "start_s=0", "settle_s=1")


@dataclass
class Cluster(Server):
    """A running one."""

    def deploy(self, change=None):
        """Deploy the application anew with NAME=VALUE; without, wait until it is there for the first time."""
        if change is not None:
            self.process.stdin.write(change + "\n")
            self.process.stdin.flush()
        while (line := self.process.stdout.readline()) and line != "runs\n":
            pass
        assert line, "it ended; see its log"

    def stop(self):
        """End it, and its exit status."""
        self.process.communicate(timeout=WAIT_S)
        return self.process.returncode


def start(log_path, environment, *asked):
    """A cluster with the application, ready to answer.

    Args:
        log_path: Where what it says goes.
        environment: Its settings among everything else.
        asked: NAME=VALUE, as ``serve run`` takes them.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_service", str(port), *asked, *FEW],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment | RAY,
        )
    cluster = Cluster(process, f"http://127.0.0.1:{port}")
    try:
        cluster.deploy()
        until(lambda: httpx.get(f"{cluster.url}/readyz").status_code == 200)
    except BaseException:
        cluster.stop()
        raise
    return cluster
