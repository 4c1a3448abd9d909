"""LoRAs that each row of a batch wears by itself.

A row's condition carries the scale of every LoRA that its model knows (``worn``, (R, A)). Rows that wear one LoRA each,
or none, share one forward (peft's mixed batches); rows that wear several at once, or one LoRA at different scales, are
grouped, one forward a group.
"""

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

WORN: Final = "worn"
"""The key of a condition that says what its rows wear."""
_BARE: Final = "__base__"


class Wardrobe:
    """The LoRAs of one model.

    Args:
        pipeline: The diffusers pipeline whose parts wear them.
        loras: Name → safetensors file.
    """

    def __init__(self, pipeline: Any, loras: Mapping[str, Path]) -> None:
        self.names = tuple(loras)
        for name, file in loras.items():
            if not file.exists():
                raise ModelLoadError(f"the LoRA {name!r}: there is no file {file.name}")
            try:
                with warnings.catch_warnings():
                    # Several LoRAs in one model are what is wanted here.
                    warnings.filterwarnings("ignore", "Already found a `peft_config`")
                    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
            except Exception as error:
                told = str(error).replace(str(file.parent), "").splitlines()[0]
                raise ModelLoadError(f"the LoRA {name!r} ({file.name}) does not fit: {told}") from error

        for network in pipeline.components.values():
            if isinstance(network, nn.Module):
                network.requires_grad_(False).eval()

    def worn(self, adapters: Mapping[str, float] | None, rows: int, device: torch.device) -> dict[str, Tensor]:
        """What the rows' condition says: (R, A) scales, in the order of ``names``; nothing where there are no LoRAs."""
        if not self.names:
            return {}
        scales = [(adapters or {}).get(name, 0.0) for name in self.names]
        return {WORN: torch.tensor([scales] * rows, device=device)}

    def dress(self, network: nn.Module, adapters: Mapping[str, float]) -> None:
        """Have a network wear the LoRAs given, and no others, from now on."""
        if not self.names:
            return
        chosen = {name: scale for name, scale in adapters.items() if scale}
        set_adapter_layers(network, enabled=bool(chosen))
        if chosen:
            set_weights_and_activate_adapters(network, list(chosen), list(chosen.values()))

    def forward(self, network: nn.Module, worn: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute rows, each with what it wears.

        Args:
            network: What wears it.
            worn: (R, A) scales.
            compute: Indices of rows → their results.
        """
        kinds, kind_of = torch.unique(worn.cpu(), dim=0, return_inverse=True)
        everyone = torch.arange(len(worn))
        wear = [{name: float(s) for name, s in zip(self.names, kind, strict=True) if s} for kind in kinds]
        if len(kinds) == 1:
            self.dress(network, wear[0])
            return compute(everyone)
        if _may_mix(network, wear):
            self.dress(network, {name: scale for kind in wear for name, scale in kind.items()})
            with _mixed(network, [next(iter(wear[k]), _BARE) for k in kind_of.tolist()]):
                return compute(everyone)
        parts, places = [], []
        for k, kind in enumerate(wear):
            self.dress(network, kind)
            places.append(everyone[kind_of == k])
            parts.append(compute(places[-1]))
        return torch.cat(parts)[torch.cat(places).argsort()]


def _may_mix(network: nn.Module, kinds: Sequence[Mapping[str, float]]) -> bool:
    """Whether peft can take these kinds of rows in one batch: one LoRA a row, one scale a LoRA, nothing but LoRA."""
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
    """Tell every LoRA layer which row wears what, as peft's own models do for ``adapter_names``."""

    def tell(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"adapter_names": names}

    hooks = [layer.register_forward_pre_hook(tell, with_kwargs=True) for layer in _layers(network)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
