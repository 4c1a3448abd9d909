"""How long `superdiff serve` takes until it is ready, and what it keeps in memory with the models that ship loaded.

Beside it stands what no service of these models can go below: the time that Python takes to import the libraries' own
classes of a network, an autoencoder and a text encoder, in a process that does nothing else.
"""

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
# The cyclic garbage collector is off, as it is while the service imports them.
LIBRARIES = """
import gc
gc.disable()
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel
"""


def ready() -> bool:
    """Whether /readyz answers 200."""
    try:
        with urllib.request.urlopen(f"{URL}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def once() -> tuple[float, float, float]:
    """Seconds from the command to readiness; the processor seconds of it; and then resident memory in MB."""
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
        process = psutil.Process(server.pid)
        used = process.cpu_times()
        return seconds, used.user + used.system, process.memory_info().rss / 2**20
    finally:
        server.terminate()
        server.wait(30)


def libraries() -> float:
    """Seconds of a process that imports the libraries' classes and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", LIBRARIES], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, write."""
    given = arguments("startup", __doc__)
    once()  # warms the disk cache
    measured = [(libraries(), *once()) for _ in range(min(given.repeats, 5))]
    names = ("libraries_s", "ready_s", "processor_s", "resident_mb")
    numbers = medians({name: [each[i] for each in measured] for i, name in enumerate(names)})
    rows = [
        ["the libraries' classes alone", f"{numbers['libraries_s']:.1f} s"],
        ["ready after", f"{numbers['ready_s']:.1f} s"],
        ["processor time until then", f"{numbers['processor_s']:.1f} s"],
        ["resident memory", f"{numbers['resident_mb']:.0f} MB"],
    ]
    report("superdiff serve with the models that ship, warm disk", table(["", "median"], rows), numbers, given.out)


if __name__ == "__main__":
    main()
