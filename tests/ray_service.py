"""The service on a Ray cluster of its own, as ``serve run service.cluster:app`` has it, but on a port of one's choice.

    python -m tests.ray_service PORT NAME=VALUE …

Each line of its standard input is NAME=VALUE, with which the application is deployed anew; it ends with the input.
"""

import sys

import ray
from ray import serve

from service.cluster import Cluster, app


def main():
    port, *given = sys.argv[1:]
    asked = dict(each.split("=") for each in given)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
        serve.run(app(Cluster(**asked)))
        print("runs", flush=True)
        for line in sys.stdin:
            name, value = line.strip().split("=")
            serve.run(app(Cluster(**asked | {name: value})))
            print("runs", flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
