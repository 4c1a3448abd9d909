"""How long `superdiff serve` takes until it is ready, and what it keeps in memory with its three models loaded."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil

from benchmarks.harness import arguments, medians, report, table

PORT = 8957
URL = f"http://127.0.0.1:{PORT}"


def ready() -> bool:
    """Whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"{URL}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def once() -> tuple[float, float]:
    """Seconds from the command to readiness, and then resident memory in MB."""
    start = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"SUPERDIFF_DATABASE": "memory:"},
    )
    try:
        while not ready():
            if server.poll() is not None or time.perf_counter() - start > 120:
                raise RuntimeError("the service did not start")
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        return seconds, psutil.Process(server.pid).memory_info().rss / 2**20
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    """Measure, print, write."""
    given = arguments("startup", __doc__)
    once()  # warms the disk cache
    measured = [once() for _ in range(min(given.repeats, 5))]
    numbers = medians({"ready_s": [m[0] for m in measured], "resident_mb": [m[1] for m in measured]})
    rows = [["ready after", f"{numbers['ready_s']:.1f} s"], ["resident memory", f"{numbers['resident_mb']:.0f} MB"]]
    report("superdiff serve with three models, warm disk", table(["", "median"], rows), numbers, given.out)


if __name__ == "__main__":
    main()
