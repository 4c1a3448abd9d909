"""The three nodes. The names of their attributes and of INPUT_TYPES are ComfyUI's."""

from __future__ import annotations

import json
import os
from typing import Any

import torch

from .client import DEFAULT_URL, MAX_CANDIDATES, MAX_SIDE, MAX_STEPS, SEED_LIMIT, Client
from .host import watcher
from .pictures import read_images, write_image, write_masks

CATEGORY = "superdiff"

Inputs = dict[str, dict[str, tuple[str, dict[str, Any]]]]

_EXPRESSION = (
    "STRING",
    {
        "multiline": True,
        "default": '"a cat" AND "a pizza"',
        "tooltip": 'What to compose: "a" AND "b", "a" OR "b", "a" NOT "b", nested by parentheses.',
    },
)
_URL = ("STRING", {"default": DEFAULT_URL, "tooltip": "Where superdiff-serve listens."})
_SEED = ("INT", {"default": 0, "min": 0, "max": SEED_LIMIT - 1, "control_after_generate": True})
_STEPS = ("INT", {"default": 0, "min": 0, "max": MAX_STEPS, "tooltip": "Network calls; 0: the model's own number."})
_GUIDANCE = (
    "FLOAT",
    {"default": -1.0, "min": -1.0, "max": 100.0, "step": 0.1, "tooltip": "Guidance scale; below 0: the model's own."},
)
_CANDIDATES = (
    "INT",
    {"default": 1, "min": 1, "max": MAX_CANDIDATES, "tooltip": "The best of so many is returned."},
)
_NEGATIVE = ("STRING", {"multiline": True, "default": "", "tooltip": "What guidance leads away from."})
_IMAGE: tuple[str, dict[str, Any]] = ("IMAGE", {})
_MASK = ("MASK", {"tooltip": "White is painted anew."})


class SuperdiffCompose:
    """Pictures of an expression."""

    DESCRIPTION = "Composes pictures with superdiff-serve: AND, OR, NOT over prompts and models."
    CATEGORY = CATEGORY
    FUNCTION = "compose"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("image", "info")

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """What the node takes."""
        side = {"default": 0, "min": 0, "max": MAX_SIDE, "step": 8, "tooltip": "In pixels; 0: the model's own."}
        return {
            "required": {
                "expression": _EXPRESSION,
                "url": _URL,
                "seed": _SEED,
                "steps": _STEPS,
                "guidance": _GUIDANCE,
                "candidates": _CANDIDATES,
            },
            "optional": {
                "negative_prompt": _NEGATIVE,
                "width": ("INT", side),
                "height": ("INT", side),
                "num_images": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Of the batch."}),
            },
        }

    def compose(
        self,
        expression: str,
        url: str,
        seed: int,
        steps: int,
        guidance: float,
        candidates: int,
        negative_prompt: str = "",
        width: int = 0,
        height: int = 0,
        num_images: int = 1,
    ) -> tuple[torch.Tensor, str]:
        """The pictures, and what the service says of them: seeds, log-densities, lifts, as JSON.

        Raises:
            ServiceError: The service refuses, fails or cannot be reached.
        """
        body = _drawing(expression, seed, steps, guidance, negative_prompt)
        sides = {name: side for name, side in (("width", width), ("height", height)) if side}
        asked = {**body, **sides, "candidates": candidates, "num_images": num_images}
        drawn = _client(url).draw(asked, watcher())
        return read_images(drawn.pictures), json.dumps(drawn.result, indent=2, ensure_ascii=False)


class SuperdiffInpaint:
    """A part of each picture painted anew."""

    DESCRIPTION = "Paints what is white in the mask anew with superdiff-serve; all else stays as it was."
    CATEGORY = CATEGORY
    FUNCTION = "inpaint"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """What the node takes."""
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "1 keeps nothing of what was."}
        return {
            "required": {
                "image": _IMAGE,
                "mask": _MASK,
                "expression": _EXPRESSION,
                "strength": ("FLOAT", strength),
                "url": _URL,
                "seed": _SEED,
                "steps": _STEPS,
            },
            "optional": {"guidance": _GUIDANCE, "candidates": _CANDIDATES, "negative_prompt": _NEGATIVE},
        }

    def inpaint(
        self,
        image: torch.Tensor,
        mask: torch.Tensor,
        expression: str,
        strength: float,
        url: str,
        seed: int,
        steps: int,
        guidance: float = -1.0,
        candidates: int = 1,
        negative_prompt: str = "",
    ) -> tuple[torch.Tensor]:
        """The pictures of a batch, one after another; picture i is drawn from seed + i.

        Raises:
            ServiceError: The service refuses, fails or cannot be reached.
            ValueError: The mask is black.
        """
        client, tell, files = _client(url), watcher(), []
        for i, (picture, painted) in enumerate(zip(image, write_masks(mask, image))):
            body = _drawing(expression, (seed + i) % SEED_LIMIT, steps, guidance, negative_prompt)
            known = {"image": write_image(picture), "mask": painted, "strength": strength}
            files += client.draw({**body, **known, "candidates": candidates}, tell).pictures
        return (read_images(files),)


class SuperdiffDensity:
    """Which prompt explains a picture."""

    DESCRIPTION = "Asks superdiff-serve how likely a picture is under each prompt of an expression."
    CATEGORY = CATEGORY
    FUNCTION = "explain"
    RETURN_TYPES = ("STRING", "FLOAT", "FLOAT")
    RETURN_NAMES = ("report", "posterior", "log_density")
    OUTPUT_IS_LIST = (False, True, True)

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:
        """What the node takes."""
        draws = {"default": 4, "min": 1, "max": 64, "tooltip": "Draws of the noise to average over."}
        return {
            "required": {"image": _IMAGE, "expression": _EXPRESSION, "url": _URL, "seed": _SEED},
            "optional": {"steps": _STEPS, "draws": ("INT", draws)},
        }

    def explain(
        self, image: torch.Tensor, expression: str, url: str, seed: int, steps: int = 0, draws: int = 4
    ) -> tuple[str, list[float], list[float]]:
        """A line for each picture and prompt, and the numbers in them: posteriors, and log-densities in nats.

        Raises:
            ServiceError: The service refuses, fails or cannot be reached.
        """
        client = _client(url)
        lines, posteriors, densities = [], [], []
        for i, picture in enumerate(image):
            body = {"expression": expression, "seed": seed, "draws": draws, "image": write_image(picture)}
            told = client.density({**body, **({"steps": steps} if steps else {})})
            for name in told["components"]:
                found = told["explanations"][name]
                error = found["standard_error"]
                spread = "" if error is None else f" ± {error:.1f}"
                lines.append(f"{i + 1}  {name}: {found['posterior']:.1%}, {found['log_density']:.1f}{spread} nats")
                posteriors.append(found["posterior"])
                densities.append(found["log_density"])
        return "\n".join(lines), posteriors, densities


def _client(url: str) -> Client:
    """The service, with the key of the environment: what stands in a node is saved in workflows and pictures."""
    return Client(url, os.environ.get("SUPERDIFF_KEY", ""))


def _drawing(expression: str, seed: int, steps: int, guidance: float, negative_prompt: str) -> dict[str, Any]:
    """What both drawing nodes ask for; what the model is to choose is left out."""
    body: dict[str, Any] = {"expression": expression, "seed": seed, "negative_prompt": negative_prompt}
    if steps:
        body["steps"] = steps
    if guidance >= 0:
        body["guidance_scale"] = guidance
    return body


NODE_CLASS_MAPPINGS = {
    "SuperdiffCompose": SuperdiffCompose,
    "SuperdiffInpaint": SuperdiffInpaint,
    "SuperdiffDensity": SuperdiffDensity,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "SuperdiffCompose": "Superdiff Compose",
    "SuperdiffInpaint": "Superdiff Inpaint",
    "SuperdiffDensity": "Superdiff Density",
}
