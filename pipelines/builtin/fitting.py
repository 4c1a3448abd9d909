"""A training loop that can be stopped at any step and resumed with the very same result."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

_CLIP_NORM: Final = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train: AdamW, linear warm-up, cosine decay to zero, exponential moving average."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 200
    ema_decay: float = 0.999
    weight_decay: float = 0.01

    def rate(self, step: int) -> float:
        """The learning rate's factor at a step, in [0, 1]."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def fit(
    module: nn.Module,
    loss: Callable[[np.random.Generator], Tensor],
    plan: Plan,
    *,
    checkpoint: Path,
    label: str,
    seed: int,
    checkpoint_every: int = 250,
) -> None:
    """Minimise ``loss`` over the module's parameters and leave their moving average in the module.

    Step k sees only the generator seeded by (seed, k), also as torch's seed, so a run that was stopped and resumed
    from its checkpoint equals one that was not.
    """
    optimiser = torch.optim.AdamW(
        (p for p in module.parameters() if p.requires_grad),
        lr=plan.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=plan.weight_decay,
        fused=True,
    )
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["plan"] != asdict(plan):
            raise ValueError(
                f"{checkpoint} was made by another plan, {state['plan']}; remove it or give another folder"
            )
        module.load_state_dict(state["module"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    module.train()
    losses: list[float] = []
    bar = tqdm(total=plan.steps, initial=first, desc=label, mininterval=5)
    for step in range(first, plan.steps):
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(int(rng.integers(2**31)))
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * plan.rate(step)
        value = loss(rng)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), _CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad()
        averaged.update_parameters(module)
        losses.append(float(value.detach()))
        done = step + 1
        bar.update()
        if done % checkpoint_every == 0 or done == plan.steps:
            bar.set_postfix(loss=f"{np.mean(losses[-checkpoint_every:]):.4f}")
            _save(checkpoint, module, averaged, optimiser, plan, done)
    bar.close()
    module.load_state_dict(averaged.module.state_dict())
    module.eval()


def _save(
    path: Path, module: nn.Module, averaged: nn.Module, optimiser: torch.optim.Optimizer, plan: Plan, step: int
) -> None:
    modules = {"module": module.state_dict(), "averaged": averaged.state_dict(), "optimiser": optimiser.state_dict()}
    save_whole(modules | {"plan": asdict(plan), "step": step}, path)


def mixed_precision() -> torch.autocast:
    """bfloat16 where the processor multiplies it, else float32: emulation took ten times as long."""
    able = torch.cpu.get_capabilities()
    multiplies = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies)


def save_whole(state: object, path: Path) -> None:
    """Write beside and rename, so that a stop in the middle leaves the last whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    torch.save(state, beside)
    beside.replace(path)
