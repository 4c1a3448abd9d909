"""The service on a Ray cluster of its own, as ``serve run service.cluster:app`` has it, but on a port of one's choice.

    python -m tests.ray_service PORT NAME=VALUE …

Ends when its standard input does.
"""

import sys

import ray
from ray import serve

from service.cluster import Cluster, app


def main():
    port, *given = sys.argv[1:]
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
        serve.run(app(Cluster(**dict(each.split("=") for each in given))))
        print("runs", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
