"""Forward-mode derivatives of networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pipelines.errors import InvalidInputError


def derivative(function: Callable[[Tensor], Tensor], z: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """A network's output and its derivative along a direction, (∂f/∂z) e, in one forward-mode pass.

    Attention runs as plain products, because torch's fused kernels have no forward-mode derivative, and a compiled
    network runs as it was written.

    Args:
        function: (R, …) → (R, …).
        z: (R, …).
        direction: (R, …) e.

    Raises:
        InvalidInputError: An operation of the network has no forward-mode derivative, or something in it drops
            derivatives, as ``torch.inference_mode`` does.
    """
    # Samples made under inference mode take no derivative with them: hence the copy.
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.compiler.set_stance("force_eager"),
        forward_ad.dual_level(),
        _ContiguousNorms(),
    ):
        try:
            dual = function(forward_ad.make_dual(z.clone(), direction.to(z).clone()))
        except NotImplementedError as error:
            raise _refused(str(error).splitlines()[0]) from error
        output, along = forward_ad.unpack_dual(dual)
    if along is None:
        raise _refused("something in it drops derivatives")
    return output, along


class _ContiguousNorms(TorchFunctionMode):
    """Group norms of contiguous inputs: torch's forward-mode formula asks for that, its plain one does not."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call as it was called, with a contiguous copy for a group norm."""
        if func is functional.group_norm:
            args = (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        return func(*args, **kwargs or {})


def _refused(why: str) -> InvalidInputError:
    detail = f"the network has no forward-mode derivative, which the probability_flow kernel needs: {why}"
    return InvalidInputError(detail, field=("kernel",))
