"""The endless data set behind the builtin models: pale scenes with one to three coloured shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

SIZE: Final = 64
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 40, 40),
    "green": (42, 157, 74),
    "blue": (40, 84, 214),
    "yellow": (244, 196, 32),
    "purple": (142, 58, 176),
    "black": (32, 32, 38),
}
ROUND: Final = ("circle", "square")
SHARP: Final = ("triangle", "star")
SHAPES: Final = ROUND + SHARP
MAX_OBJECTS: Final = 3

_SUPERSAMPLING: Final = 4
_RADIUS: Final = (9.0, 13.5)
_STAR_INNER: Final = 0.42
_TILT: Final = pi / 10
_GROUND: Final = (226, 255)
_PLACEMENT_TRIES: Final = 40


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape of a scene: its kind, its colour, its centre and circumradius in pixels, its tilt in radians."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tilt: float

    @property
    def name(self) -> str:
        """What a caption calls it, without the article: "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One to three things that do not overlap, on a pale ground (RGB, 0–255)."""

    things: tuple[Thing, ...]
    ground: tuple[int, int, int]


def draw_scene(rng: np.random.Generator, shapes: Sequence[str] = SHAPES) -> Scene:
    """A random scene of 1, 2 or 3 things (probabilities 0.3, 0.4, 0.3) of the given shapes.

    Circumscribed circles keep two pixels apart and stay inside the picture, so a shape is never cut or covered.
    """
    low, high = _GROUND
    ground = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    wanted = int(rng.choice((1, 2, 3), p=(0.3, 0.4, 0.3)))
    while True:
        things: list[Thing] = []
        for _ in range(_PLACEMENT_TRIES):
            radius = float(rng.uniform(*_RADIUS))
            x, y = (float(c) for c in rng.uniform(radius + 1, SIZE - radius - 1, size=2))
            if all(hypot(x - t.x, y - t.y) > radius + t.radius + 2 for t in things):
                shape = shapes[int(rng.integers(len(shapes)))]
                colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
                things.append(Thing(shape, colour, x, y, radius, float(rng.uniform(-_TILT, _TILT))))
                if len(things) == wanted:
                    return Scene(tuple(things), ground)


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """The polygon of a thing that is not a circle, in pixels."""
    corners, first = {"square": (4, pi / 4), "triangle": (3, pi / 2), "star": (10, pi / 2)}[thing.shape]
    points = []
    for k in range(corners):
        angle = first + thing.tilt + 2 * pi * k / corners
        r = thing.radius * (_STAR_INNER if thing.shape == "star" and k % 2 else 1.0)
        points.append((thing.x + r * cos(angle), thing.y - r * sin(angle)))
    return points


def render(scene: Scene) -> Image.Image:
    """The scene as a 64×64 RGB picture, antialiased by supersampling."""
    k = _SUPERSAMPLING
    image = Image.new("RGB", (SIZE * k, SIZE * k), scene.ground)
    pen = ImageDraw.Draw(image)
    for thing in scene.things:
        if thing.shape == "circle":
            x, y, r = thing.x * k, thing.y * k, thing.radius * k
            pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[thing.colour])
        else:
            pen.polygon([(x * k, y * k) for x, y in _outline(thing)], fill=COLOURS[thing.colour])
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)
