"""LoRAs that are applied to each row of a batch separately.

The condition of a row carries the scale of each of the model's LoRAs (``lora_scales``, (R, A)). Rows with at most one
LoRA each share one forward (peft's mixed batches). If a row has several LoRAs, or rows have one LoRA at different
scales, rows of equal scales are grouped and each group takes its own forward.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.utils.peft_utils import set_adapter_layers, set_weights_and_activate_adapters
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from pipelines.errors import ModelLoadError

LORA_SCALES: Final = "lora_scales"
"""The key of a condition that holds the LoRA scales of its rows."""
_BASE: Final = "__base__"  # peft's name for a row without a LoRA


@contextmanager
def _quiet() -> Iterator[None]:
    """Diffusers warns of every part of a pipeline that a LoRA leaves as it is: most leave the text encoders."""
    logger = logging.getLogger("diffusers.loaders.lora_base")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class LoraAdapters:
    """The LoRAs of one model. One that cannot be loaded leaves the model and its other LoRAs as they are.

    Args:
        pipeline: The diffusers pipeline that they are loaded into.
        loras: Name → safetensors file.

    Attributes:
        names: Those that can be applied.
        broken: Name → why it cannot be loaded, of the others.
    """

    def __init__(self, pipeline: Any, loras: Mapping[str, Path]) -> None:
        self.broken: dict[str, str] = {}
        for name, file in loras.items():
            try:
                _load(pipeline, name, file)
            except ModelLoadError as error:
                self.broken[name] = str(error)
        self.names = tuple(name for name in loras if name not in self.broken)
        for network in pipeline.components.values():
            if isinstance(network, nn.Module):
                network.requires_grad_(False).eval()

    def condition(self, adapters: Mapping[str, float] | None, rows: int, device: torch.device) -> dict[str, Tensor]:
        """The rows' part of the condition: (R, A) scales in the order of ``names``; {} for a model without LoRAs."""
        if not self.names:
            return {}
        scales = [(adapters or {}).get(name, 0.0) for name in self.names]
        return {LORA_SCALES: torch.tensor([scales] * rows, device=device)}

    def apply(self, network: nn.Module, adapters: Mapping[str, float]) -> None:
        """Apply these LoRAs to a network, and no others, until the next call."""
        if not self.names:
            return
        chosen = {name: scale for name, scale in adapters.items() if scale}
        set_adapter_layers(network, enabled=bool(chosen))
        if chosen:
            set_weights_and_activate_adapters(network, list(chosen), list(chosen.values()))

    def forward(self, network: nn.Module, scales: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute rows, each with its own LoRAs.

        Args:
            network: The network that they are applied to.
            scales: (R, A).
            compute: Indices of rows → their results.
        """
        kinds, kind_of = torch.unique(scales.cpu(), dim=0, return_inverse=True)
        everyone = torch.arange(len(scales))
        adapters = [{name: float(s) for name, s in zip(self.names, kind, strict=True) if s} for kind in kinds]
        if len(kinds) == 1:
            self.apply(network, adapters[0])
            return compute(everyone)
        if _may_mix(network, adapters):
            self.apply(network, {name: scale for kind in adapters for name, scale in kind.items()})
            with _mixed(network, [next(iter(adapters[k]), _BASE) for k in kind_of.tolist()]):
                return compute(everyone)
        parts, places = [], []
        for k, kind in enumerate(adapters):
            self.apply(network, kind)
            places.append(everyone[kind_of == k])
            parts.append(compute(places[-1]))
        return torch.cat(parts)[torch.cat(places).argsort()]


def _may_mix(network: nn.Module, kinds: Sequence[Mapping[str, float]]) -> bool:
    """Whether peft can compute these kinds of rows in one batch: one LoRA per row, one scale per LoRA, no DoRA."""
    scales: dict[str, float] = {}
    for kind in kinds:
        if len(kind) > 1:
            return False
        for name, scale in kind.items():
            if scales.setdefault(name, scale) != scale:
                return False
    return not any(layer.use_dora.get(name, False) for layer in _layers(network) for name in scales)


def _layers(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, LoraLayer)]


@contextmanager
def _mixed(network: nn.Module, names: list[str]) -> Iterator[None]:
    """Pass every LoRA layer the LoRA of each row, as peft's own models do for ``adapter_names``."""

    def add_names(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"adapter_names": names}

    hooks = [layer.register_forward_pre_hook(add_names, with_kwargs=True) for layer in _layers(network)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _load(pipeline: Any, name: str, file: Path) -> None:
    """Load a LoRA into a pipeline; :class:`ModelLoadError` if it cannot be, and nothing of it stays."""
    if not file.exists():
        raise ModelLoadError(f"there is no file {file.name}")
    try:
        with warnings.catch_warnings(), _quiet():
            # peft warns of a second LoRA in one model, which is intended here.
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    except Exception as error:
        # Where diffusers came as far as one of the networks, that one has its layers already.
        with contextlib.suppress(Exception):
            pipeline.delete_adapters(name)
        reason = str(error).replace(f"{file.parent}/", "").splitlines()[0]
        raise ModelLoadError(f"{file.name} does not fit: {reason}") from error
