"""A document of Krita's ↔ plain values."""

from __future__ import annotations

from typing import Any, NamedTuple

from PyQt5.QtCore import QByteArray
from PyQt5.QtGui import QImage

from .asking import Order, Snapshot
from .geometry import Rect
from .pixels import shown

_SRGB = ("RGBA", "U8", "sRGB-elle-V2-srgbtrc.icc")


class Layer(NamedTuple):
    """What a new layer holds.

    Attributes:
        place: Where on the canvas.
        bgra: Its pixels.
    """

    place: Rect
    bgra: bytes


def snapshot(document: Any) -> Snapshot:
    """The document as it is now; only in Krita's own thread."""
    document.waitForDone()
    canvas = Rect(0, 0, document.width(), document.height())
    seen = document.projection(0, 0, canvas.width, canvas.height)
    selection = document.selection()
    if selection is None or not selection.width() or not selection.height():
        return Snapshot(canvas, _bgra(seen), None, None)
    mask = bytes(selection.pixelData(0, 0, canvas.width, canvas.height))
    selected = Rect(selection.x(), selection.y(), selection.width(), selection.height())
    return Snapshot(canvas, _bgra(seen), mask, selected)


def layer_of(picture: QImage, asked: Order) -> Layer:
    """The answer as a layer: cut to its place, and to what was selected. In any thread."""
    place = asked.place
    pixels = _bgra(picture.copy(0, 0, place.width, place.height))
    return Layer(place, pixels if asked.mask is None else shown(pixels, asked.mask))


def add(document: Any, layer: Layer, name: str) -> None:
    """Put a new layer on top of all others; only in Krita's own thread."""
    node = document.createNode(name, "paintlayer")
    if (node.colorModel(), node.colorDepth()) != _SRGB[:2]:
        node.setColorSpace(*_SRGB)
    node.setPixelData(QByteArray(layer.bgra), *layer.place)
    document.rootNode().addChildNode(node, None)
    document.refreshProjection()


def _bgra(image: QImage) -> bytes:
    """The pixels, 8 bits a channel, not premultiplied; rows of 4-byte pixels have no padding."""
    plain = image.convertToFormat(QImage.Format_ARGB32)
    bits = plain.constBits()
    bits.setsize(plain.sizeInBytes())
    return bytes(bits)
