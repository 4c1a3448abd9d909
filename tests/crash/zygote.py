"""Starts servers quickly: imports and loads the models once, then forks a real server process whenever it is asked.

Reads lines of JSON, each the settings of a server, or of a worker where it says so; answers each with the process id
and the port.
"""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import uvicorn

from pipelines.catalog import Catalog
from service.app import create_app
from service.settings import Settings
from service.workers.process import WorkerProcess


def born(log):
    """Be a process of one's own."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def work(catalog, settings):
    """Be a worker, until somebody ends this process."""

    async def run():
        process = WorkerProcess(Settings(**settings), catalog)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, process.stop)
        await process.run()

    asyncio.run(run())


def serve(catalog, listener, settings):
    """Be a server, until somebody ends this process."""
    application = create_app(Settings(**settings), catalog=catalog)
    uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listener])


def main():
    torch.set_num_threads(1)
    folder, log = Path(sys.argv[1]), sys.argv[2]
    catalog = Catalog.read(folder / "catalog.toml", "cpu")
    for name in catalog.names:
        catalog.get(name)
    # Nobody waits for the servers' ends here.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(flush=True)
    for line in sys.stdin:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            child = os.fork()
            if child == 0:
                os.setpgid(0, 0)
                born(log)
                settings = json.loads(line)
                if settings.pop("role", "server") == "worker":
                    listener.close()
                    work(catalog, settings)
                else:
                    serve(catalog, listener, settings)
                os._exit(0)
            print(json.dumps([child, listener.getsockname()[1]]), flush=True)


if __name__ == "__main__":
    main()
