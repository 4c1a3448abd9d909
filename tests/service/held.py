"""An engine that a test stops between two steps."""

import threading

from service.engine.executor import Executor


class Held(Executor):
    """An executor whose steps wait until they are let go."""

    def __init__(self, catalog):
        super().__init__(catalog)
        self.stepping, self.go = threading.Event(), threading.Event()

    def advance(self, jobs):
        self.stepping.set()
        assert self.go.wait(60)
        super().advance(jobs)
