"""What other tools call the fields of a request → what takes their place here, in words; one table an endpoint."""

from collections.abc import Mapping, Sequence
from typing import Final


def _called(place: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, place)


_IMAGES: Final[Sequence[str]] = (
    "n", "batch_size", "num_images_per_prompt", "num_outputs", "num_samples", "samples", "count", "n_iter", "images",
)  # fmt: skip
_ASKING: Final[Mapping[str, str]] = {
    **_called("`width` and `height`", "size", "resolution", "image_size"),
    **_called("`steps`", "num_inference_steps", "num_steps", "sampling_steps", "inference_steps"),
    **_called("`seed`", "manual_seed", "random_seed", "noise_seed", "generator"),
    **_called("`kernel`", "sampler", "sampler_name", "scheduler"),
    **_called("`image`", "init_image", "init_images", "input_image", "source_image", "image_url"),
    **_called("`timeout_s`", "timeout"),
    **_called("`fit`", "resize_mode"),
    **_called("`model` of a component", "model", "models", "checkpoint"),
    **_called("`lora` of a component", "lora", "loras", "adapters"),
    **_called("`weight` of a component", "weight", "weights"),
}
_DRAWING: Final[Mapping[str, str]] = {
    **_ASKING,
    **_called("`num_images`", *_IMAGES),
    **_called("`guidance_scale`", "cfg_scale", "cfg", "guidance", "scale"),
    **_called("`negative_prompt`", "negative", "negative_prompts", "neg_prompt", "uncond"),
    **_called("`mask`", "mask_image", "mask_url"),
    **_called("`mask_feather`", "mask_blur"),
    **_called("`strength`", "denoising_strength", "denoise", "image_strength"),
    **_called("`output_format`", "format", "image_format"),
    **_called("`candidates`", "best_of"),
    **_called("the header `Accept: text/event-stream`", "stream"),
}
_PROMPTS: Final[Sequence[str]] = ("prompt", "prompts", "text", "texts", "query", "concepts", "objects")

COMPONENTS: Final[Mapping[str, str]] = {
    **_DRAWING,
    **_called("`components`", *_PROMPTS),
    **_called("`components`, or `expression` of POST /v1/superpose", "expression"),
}
"""Of POST /v1/superpose/or and /and."""
EXPRESSION: Final[Mapping[str, str]] = {**_DRAWING, **_called("`expression`", *_PROMPTS, "components")}
"""Of POST /v1/superpose."""
DENSITY: Final[Mapping[str, str]] = {
    **_ASKING,
    **_called("`components`", *_PROMPTS),
    **_called("`draws`", *_IMAGES, "num_images", "num_draws"),
}
"""Of POST /v1/density."""
COMPONENT: Final[Mapping[str, str]] = {
    **_called("`prompt`", "text", "caption", "description"),
    **_called("`negative_prompt`", "negative", "neg_prompt"),
    **_called("`model`", "checkpoint", "model_name"),
    **_called("`lora`", "loras", "adapters"),
    **_called("`weight`", "scale", "strength", "bias", "lift", "prior"),
}
"""Of a component, wherever one stands."""
OPERATION: Final[Mapping[str, str]] = {**_called("`weight` of each term", "weights", "biases", "lifts")}
"""Of an operator of a tree."""
IMAGES: Final[Mapping[str, str]] = {
    **_called("`n`", *_IMAGES, "num_images"),
    **_called("`size`", "width", "height", "resolution", "image_size"),
    **_called("`output_format`", "format", "image_format"),
    **_called("POST /v1/images/edits", "image", "images", "mask", "init_image"),
    **_called("`superdiff.negative_prompt`", "negative", "negative_prompt"),
    **_called("`superdiff.steps`", "steps", "num_inference_steps"),
    **_called("`superdiff.guidance_scale`", "cfg_scale", "guidance", "guidance_scale"),
    **{name: f"`superdiff.{name}`" for name in ("seed", "strength", "expression", "candidates", "particles", "kernel")},
}
"""Of POST /v1/images/generations and /edits."""
EXTRA: Final[Mapping[str, str]] = {
    **EXPRESSION,
    **_called("`n`, beside `superdiff`", *_IMAGES),
    **_called("`size`, beside `superdiff`", "size", "resolution", "image_size"),
    **_called("`model`, beside `superdiff`", "model", "models", "checkpoint"),
    **_called("`stream`, beside `superdiff`", "stream"),
    **_called("`output_format`, beside `superdiff`", "format", "image_format"),
}
"""Of the object ``superdiff`` there."""
