"""AdamW and its learning rate.

>>> [round(learning_rate_at(step, steps=100, warmup_steps=10, peak=1.0), 3) for step in (0, 9, 10, 99)]
[0.1, 1.0, 1.0, 0.01]
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW

# The cosine ends at this share of the highest learning rate (compression.md, section 12: 1e-3 to 1e-5).
_FINAL_SHARE = 0.01

# Learned vectors that stand for a place or a role, whatever their shape; decay would pull them all to one point.
_ROLE_NAMES = ("position", "class_token", "cls_token", "distillation_token", "mask_token", "token_type")


def adamw(parameters: Iterable[tuple[str, nn.Parameter, float]], *, weight_decay: float) -> AdamW:
    """Return AdamW (0.9, 0.999) in which biases, norms, positions and tokens have no weight decay.

    The learning rate is 0 until the loop sets it. The fused form does one pass over the weights, on CPU and CUDA.

    Args:
        parameters: name, parameter and its share of the learning rate; those without a gradient are left out.
        weight_decay: of the matrices.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter, share in parameters:
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or any(role in name for role in _ROLE_NAMES)
            groups.setdefault((share, 0.0 if plain else weight_decay), []).append(parameter)
    return AdamW(
        [
            {"params": members, "weight_decay": decay, "lr_share": share}
            for (share, decay), members in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        lr=0.0,
        betas=(0.9, 0.999),
        fused=True,
    )


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    """Give each group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_share"]


def learning_rate_at(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Return the learning rate of a step: a straight line up to `peak`, then half a cosine down to a hundredth of it.

    A function of the step alone: a resumed run needs no scheduler's state.

    Args:
        step: from 0.
        steps: of the whole run.
        warmup_steps: of the rise.
        peak: the highest learning rate.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return peak * (_FINAL_SHARE + (1.0 - _FINAL_SHARE) * 0.5 * (1.0 + math.cos(math.pi * progress)))
