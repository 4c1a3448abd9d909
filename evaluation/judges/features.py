"""A small classifier of rendered scenes, whose penultimate layer is the feature space of distances between pictures.

It is trained here, in about a minute, on endless scenes of its own: no outside weights, and none of the networks that
are judged. It says of each of 8 × 8 cells which of the 24 named things covers its middle, or that none does; the mean
over the cells of the layer before that is a picture's features.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from pipelines.builtin.captions import full_names
from pipelines.builtin.scenes import SIZE, Scene, draw_scene, render

NAMES: Final = tuple(name.removeprefix("a ") for name in full_names())
WIDTH: Final = 64
_CELLS: Final = 8
_GROUND: Final = len(NAMES)
# A cell is a thing's if its middle is well inside: near the edge either answer would be right.
_INSIDE: Final = 0.8
_LEARNING_RATE: Final = 1e-2
_PREDICTED_TOGETHER: Final = 128


@dataclass(frozen=True, slots=True)
class Training:
    """How the classifier is trained.

    Attributes:
        steps: Of Adam, with a one-cycle learning rate.
        batch: Scenes a step.
        scenes: How many there are; drawn once.
        seed: Of weights and scenes; a stream that no suite draws scenes from.
    """

    steps: int = 300
    batch: int = 64
    scenes: int = 6000
    seed: int = 20_011

    @property
    def file(self) -> str:
        """The name of its weights' file."""
        return f"classifier-{self.steps}-{self.batch}-{self.scenes}-{self.seed}.safetensors"


class Classifier(nn.Module):
    """Four convolutions over the picture at half size; a cell sees 42 pixels, more than a thing's width."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.AvgPool2d(2),
            *_layer(3, 32, 5, 2),
            *_layer(32, 64, 3, 1),
            *_layer(64, 64, 3, 2),
            *_layer(64, WIDTH, 3, 1),
        )
        self.head = nn.Conv2d(WIDTH, len(NAMES) + 1, 1)

    def embed(self, pictures: Tensor) -> Tensor:
        """(B, 3, 64, 64) in [0, 1] → (B, 64) features."""
        features: Tensor = self.cells(2 * pictures - 1).mean((2, 3))
        return features

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of each cell, (B, 25, 8, 8): the 24 things, then the ground."""
        logits: Tensor = self.head(self.cells(2 * pictures - 1))
        return logits


def _layer(before: int, after: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.SiLU()]


def rendered(scenes: list[Scene]) -> NDArray[np.uint8]:
    """(B, 64, 64, 3) RGB pictures of scenes."""
    return np.stack([np.asarray(render(scene)) for scene in scenes])


def features(classifier: Classifier, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The (B, 64) features of (B, 64, 64, 3) RGB pictures."""
    chunks = [pictures[i : i + _PREDICTED_TOGETHER] for i in range(0, len(pictures), _PREDICTED_TOGETHER)]
    with torch.inference_mode():
        embedded = torch.cat([classifier.embed(as_tensor(chunk)) for chunk in chunks])
    found: NDArray[np.float64] = embedded.double().numpy()
    return found


def load_classifier(folder: Path, training: Training) -> Classifier:
    """The classifier of this training if the folder has it; else it is trained, and its weights are written there.

    The file appears whole or not at all, so a run that is stopped while it trains trains again.
    """
    classifier, file = Classifier(), folder / training.file
    if not file.exists():
        train(classifier, training)
        folder.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".partial")
        save_file(classifier.state_dict(), beside, {key: str(value) for key, value in asdict(training).items()})
        beside.replace(file)
    classifier.load_state_dict(load_file(file))
    return classifier.eval()


def train(classifier: Classifier, training: Training) -> None:
    """Start anew and minimise the cells' cross-entropy."""
    torch.manual_seed(training.seed)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    rng = np.random.default_rng(training.seed)
    scenes = [draw_scene(rng) for _ in range(training.scenes)]
    pictures, labels = rendered(scenes), cell_labels(scenes)
    optimiser = torch.optim.Adam(classifier.parameters())
    course = torch.optim.lr_scheduler.OneCycleLR(optimiser, _LEARNING_RATE, total_steps=training.steps)
    classifier.train()
    bar = tqdm(range(training.steps), desc="feature classifier", unit="step", leave=False)
    for _ in bar:
        picked = rng.integers(len(scenes), size=training.batch)
        loss = functional.cross_entropy(classifier(as_tensor(pictures[picked])), labels[picked])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        course.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)


def cell_labels(scenes: list[Scene]) -> Tensor:
    """(B, 8, 8) which thing covers each cell's middle; 24 for the ground."""
    middles = (np.arange(_CELLS) + 0.5) * SIZE / _CELLS
    y, x = np.meshgrid(middles, middles, indexing="ij")
    labels = np.full((len(scenes), _CELLS, _CELLS), _GROUND)
    for scene, label in zip(scenes, labels, strict=True):
        for thing in scene.things:
            label[np.hypot(x - thing.x, y - thing.y) < _INSIDE * thing.radius] = NAMES.index(thing.name)
    return torch.from_numpy(labels)


def accuracy(classifier: Classifier, scenes: list[Scene]) -> float:
    """The share of right answers among the cells that a thing covers."""
    labels = cell_labels(scenes)
    with torch.inference_mode():
        answers = classifier(as_tensor(rendered(scenes))).argmax(1)
    covered = labels != _GROUND
    return float((answers == labels)[covered].float().mean())


def as_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(B, height, width, 3) RGB → (B, 3, height, width) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).float() / 255
