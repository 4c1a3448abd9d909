"""Asking the service in a thread of its own, so that Krita goes on."""

from __future__ import annotations

import threading
from typing import Any

from PyQt5.QtCore import QThread, pyqtSignal
from PyQt5.QtGui import QImage

from .asking import Order, Snapshot, Wishes, order
from .client import CancelledError, Client, Progress, ServiceError
from .document import Layer, layer_of
from .geometry import SizeError


class Work(QThread):  # type: ignore[misc]
    """One picture, from the snapshot to the finished layer.

    Signals: ``progressed`` (step, steps, jobs ahead or -1), then one of ``drawn`` (a :class:`Layer` and the service's
    answer), ``failed`` (why, in plain words) and ``cancelled``.

    Args:
        wishes: What is wanted.
        snapshot: The document as it is now.
    """

    progressed = pyqtSignal(int, int, int)
    drawn = pyqtSignal(object, object)
    failed = pyqtSignal(str)
    cancelled = pyqtSignal()

    def __init__(self, wishes: Wishes, snapshot: Snapshot) -> None:
        super().__init__()
        self._wishes, self._snapshot = wishes, snapshot
        self._stop = threading.Event()

    def cancel(self) -> None:
        """Cancel the job on the server as soon as may be; returns at once."""
        self._stop.set()

    def run(self) -> None:
        """The thread's own function."""
        try:
            layer, result = self._draw()
        except CancelledError:
            self.cancelled.emit()
        except (ServiceError, SizeError) as error:
            self.failed.emit(str(error))
        except Exception as error:
            # Whatever else: the docker must learn of the end, and an exception in a thread would end Krita.
            self.failed.emit(f"{type(error).__name__}: {error}")
        else:
            self.drawn.emit(layer, result)

    def _draw(self) -> tuple[Layer, dict[str, Any]]:
        client = Client(self._wishes.url, self._wishes.key)
        asked: Order = order(self._wishes, self._snapshot, client.models())
        drawn = client.draw(asked.body, self._tell, self._stop.is_set)
        picture = QImage()
        if not picture.loadFromData(drawn.pictures[0]):
            raise ServiceError("the service's picture cannot be read")
        return layer_of(picture, asked), drawn.result

    def _tell(self, progress: Progress) -> None:
        self.progressed.emit(progress.step, progress.steps, -1 if progress.ahead is None else progress.ahead)
