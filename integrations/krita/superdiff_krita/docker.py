"""The docker: what is seen, and what happens when its button is pressed."""

from __future__ import annotations

from typing import Any

from krita import DockWidget, DockWidgetFactory, DockWidgetFactoryBase, Krita
from PyQt5.QtCore import QRegularExpression, Qt
from PyQt5.QtGui import QRegularExpressionValidator
from PyQt5.QtWidgets import (
    QApplication,
    QCheckBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .asking import Wishes
from .client import DEFAULT_URL, MAX_STEPS, SEED_LIMIT
from .document import Layer, add, snapshot
from .work import Work

_GROUP = "superdiff"
_NAME_LENGTH = 60
_LEAVE_MS = 5000


def register(application: Krita) -> None:
    """Offer the docker in every window, under Settings → Dockers."""
    application.addDockWidgetFactory(
        DockWidgetFactory("superdiff_krita", DockWidgetFactoryBase.DockRight, SuperdiffDocker)
    )


class SuperdiffDocker(DockWidget):  # type: ignore[misc]
    """The fields of a request, its progress, and one button to draw and to cancel."""

    def __init__(self) -> None:
        super().__init__()
        self.setWindowTitle("Superdiff")
        self._work: Work | None = None
        self._document: Any = None
        kept = Krita.instance().readSetting

        self._expression = _named(QPlainTextEdit(kept(_GROUP, "expression", "")), "expression")
        self._expression.setPlaceholderText('"a cat" AND "a dog"')
        self._url = _named(QLineEdit(kept(_GROUP, "url", DEFAULT_URL)), "url")
        self._key = _named(QLineEdit(kept(_GROUP, "key", "")), "key")
        self._key.setEchoMode(QLineEdit.Password)
        self._key.setPlaceholderText("where the service wants one")
        self._seed = _named(QLineEdit(), "seed")
        self._seed.setPlaceholderText("a new one each time")
        self._seed.setValidator(QRegularExpressionValidator(QRegularExpression("[0-9]{0,16}"), self._seed))
        self._steps = _named(QSpinBox(), "steps")
        self._steps.setRange(0, MAX_STEPS)
        self._steps.setSpecialValueText("the model's own")
        self._strength = _named(QDoubleSpinBox(), "strength")
        self._strength.setRange(0, 1)
        self._strength.setSingleStep(0.05)
        self._strength.setSpecialValueText("automatic")
        self._from_canvas = _named(QCheckBox("Begin from the canvas where nothing is selected"), "from_canvas")
        self._button = _named(QPushButton("Draw"), "button")
        self._progress = _named(QProgressBar(), "progress")
        self._status = _named(QLabel(), "status")
        self._status.setWordWrap(True)
        self._status.setTextFormat(Qt.PlainText)
        self._status.setTextInteractionFlags(Qt.TextSelectableByMouse)

        form = QFormLayout()
        for label, field in (
            ("Service", self._url),
            ("API key", self._key),
            ("Seed", self._seed),
            ("Steps", self._steps),
            ("Strength", self._strength),
        ):
            form.addRow(label, field)
        column = QVBoxLayout()
        column.addWidget(self._expression)
        column.addLayout(form)
        for field in (self._from_canvas, self._button, self._progress, self._status):
            column.addWidget(field)
        inside = QWidget()
        inside.setLayout(column)
        self.setWidget(inside)

        self._button.clicked.connect(self._pressed)
        QApplication.instance().aboutToQuit.connect(self._leave)

    def canvasChanged(self, canvas: Any) -> None:
        """Krita asks for this method; the document is looked up when the button is pressed."""

    def _pressed(self) -> None:
        if self._work is None:
            self._draw()
        else:
            self._button.setEnabled(False)
            self._status.setText("Cancelling …")
            self._work.cancel()

    def _draw(self) -> None:
        document = Krita.instance().activeDocument()
        seed = self._seed.text()
        if document is None:
            self._status.setText("Open or create a document first.")
        elif not self._expression.toPlainText().strip():
            self._status.setText('Say what to draw, for example "a cat" AND "a dog".')
        elif seed and int(seed) >= SEED_LIMIT:
            self._status.setText(f"The seed must be 0 to {SEED_LIMIT - 1}.")
        else:
            wishes = self._wishes()
            Krita.instance().writeSetting(_GROUP, "url", wishes.url)
            Krita.instance().writeSetting(_GROUP, "key", wishes.key)
            Krita.instance().writeSetting(_GROUP, "expression", wishes.expression)
            self._begin(Work(wishes, snapshot(document)), document)

    def _wishes(self) -> Wishes:
        seed, steps, strength = self._seed.text(), self._steps.value(), self._strength.value()
        return Wishes(
            url=self._url.text(),
            expression=self._expression.toPlainText().strip(),
            seed=int(seed) if seed else None,
            steps=steps or None,
            strength=strength or None,
            from_canvas=self._from_canvas.isChecked(),
            key=self._key.text().strip(),
        )

    def _begin(self, work: Work, document: Any) -> None:
        self._work, self._document = work, document
        work.progressed.connect(self._progressed)
        work.drawn.connect(self._drawn)
        work.failed.connect(self._over)
        work.cancelled.connect(self._cancelled)
        self._button.setText("Cancel")
        self._progress.setRange(0, 0)
        self._status.setText("Asking the service …")
        work.start()

    def _progressed(self, step: int, steps: int, ahead: int) -> None:
        self._progress.setRange(0, steps)
        self._progress.setValue(step)
        self._status.setText(f"Step {step} of {steps}" if ahead < 0 else f"Waiting; {ahead} before this one")

    def _drawn(self, layer: Layer, result: dict[str, Any]) -> None:
        if not any(self._document == other for other in Krita.instance().documents()):
            self._over("The document was closed; the picture is lost.")
            return
        # Krita handles other events while it adds a layer: the button must say Cancel until that is done.
        add(self._document, layer, self._expression.toPlainText().strip().replace("\n", " ")[:_NAME_LENGTH])
        image = result["images"][0]
        lifts = (f"{part}: {lift:+.1f} nats" for part, lift in image["lift"].items() if lift is not None)
        self._over("\n".join((f"Done. Seed {image['seed']}", *lifts)))

    def _cancelled(self) -> None:
        self._over("Cancelled.")

    def _over(self, said: str) -> None:
        """The end, whichever: ready for the next picture."""
        if self._work is not None:
            self._work.wait()
        self._work = self._document = None
        self._status.setText(said)
        self._progress.setRange(0, 1)
        self._progress.reset()
        self._button.setText("Draw")
        self._button.setEnabled(True)

    def _leave(self) -> None:
        """Krita ends: no job stays behind on the server, and no thread that Qt would stumble over."""
        if self._work is not None:
            self._work.cancel()
            self._work.wait(_LEAVE_MS)


def _named(field: Any, name: str) -> Any:
    """A widget with a name, by which it can be found."""
    field.setObjectName(f"superdiff_{name}")
    return field
