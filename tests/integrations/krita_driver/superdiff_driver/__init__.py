"""Runs inside of Krita: fills the docker's fields, presses its button, and writes down what came of it.

The cases are in the folder that SUPERDIFF_DRIVER names, as ``cases.json``; what came of them goes to ``told.json``.
"""

import base64
import json
import os
import sys
import traceback
from pathlib import Path

from krita import Extension, Krita, Selection
from PyQt5.QtCore import QByteArray, QTimer
from PyQt5.QtWidgets import QCheckBox, QLabel, QLineEdit, QPlainTextEdit, QPushButton, QSpinBox, QWidget

FOLDER = Path(os.environ["SUPERDIFF_DRIVER"])
TICK_MS, TICKS = 20, 3000
# Without a name, a document of 16 bits is a linear one.
SRGB = "sRGB-elle-V2-srgbtrc.icc"


def find(kind, name):
    """A field of the docker."""
    dock = next(d for d in Krita.instance().dockers() if d.objectName() == "superdiff_krita")
    return dock.findChild(kind, f"superdiff_{name}")


def text(data):
    return base64.b64encode(bytes(data)).decode()


def prepare(case):
    """A document with known pixels and a selection, and the docker's fields."""
    (width, height), krita = case["canvas"], Krita.instance()
    document = krita.createDocument(width, height, case["name"], "RGBA", case["depth"], SRGB, 72.0)
    krita.activeWindow().addView(document)
    krita.setActiveDocument(document)
    document.topLevelNodes()[0].setPixelData(QByteArray(base64.b64decode(case["bgra"])), 0, 0, width, height)
    if case["mask"] is not None:
        selection = Selection()
        selection.setPixelData(QByteArray(base64.b64decode(case["mask"])), 0, 0, width, height)
        document.setSelection(selection)
    document.refreshProjection()
    document.waitForDone()
    for kind, name, write in (
        (QPlainTextEdit, "expression", "setPlainText"),
        (QLineEdit, "url", "setText"),
        (QLineEdit, "seed", "setText"),
        (QSpinBox, "steps", "setValue"),
        (QWidget, "strength", "setValue"),
        (QCheckBox, "from_canvas", "setChecked"),
    ):
        getattr(find(kind, name), write)(case["fields"][name])
    return document


def paint_layers(document):
    """From below; a selection is a node as well, but no layer."""
    return [node for node in document.topLevelNodes() if node.type() == "paintlayer"]


def seen(document):
    """What the document holds."""
    document.waitForDone()
    size = (0, 0, document.width(), document.height())
    layers = [
        {
            "name": node.name(),
            "model": node.colorModel(),
            "depth": node.colorDepth(),
            "bgra": text(node.pixelData(*size)),
        }
        for node in paint_layers(document)
    ]
    return {"layers": layers, "projection": text(document.pixelData(*size))}


def play(case):
    """One case; yields each time that Krita shall go on."""
    document = prepare(case)
    button, status = find(QPushButton, "button"), find(QLabel, "status")
    button.click()
    told = {"at_once": {"button": button.text(), "layers": len(paint_layers(document))}, "said": []}
    for tick in range(TICKS):
        yield
        if status.text() not in told["said"]:
            told["said"].append(status.text())
        if case["cancel"] and status.text().startswith("Step") and button.isEnabled():
            button.click()
        if case["close"] and document is not None and status.text().startswith("Step"):
            document.setModified(False)
            document.close()
            document = None
        if button.text() == "Draw":
            told["ticks"] = tick
            break
    told["status"] = status.text()
    if document is None:
        return told
    document.setModified(False)
    return {**told, **seen(document)}


def drive():
    """All cases, one tick of Krita's own event loop after another."""
    cases = json.loads((FOLDER / "cases.json").read_text())
    told = {}

    def run():
        for case in cases:
            print("case", case["name"], file=sys.stderr, flush=True)
            told[case["name"]] = yield from play(case)

    steps = run()

    def tick():
        try:
            next(steps)
        except StopIteration:
            end(told)
        except Exception:
            end({"error": traceback.format_exc(), **told})
        else:
            QTimer.singleShot(TICK_MS, tick)

    tick()


def end(told):
    (FOLDER / "told.json").write_text(json.dumps(told))
    os._exit(0)


class Driver(Extension):
    def setup(self):
        pass

    def createActions(self, window):
        QTimer.singleShot(0, drive)


Krita.instance().addExtension(Driver(Krita.instance()))
