"""Optimisers: Muon for the kernels of convolutions, AdamW for all other weights.

Muon (Jordan et al. 2024) steps along the momentum, all of whose singular values it makes equal by a few Newton-Schulz
iterations, without a decomposition. The kernel of a convolution is taken for a matrix of outputs by inputs. Steps are
scaled to the size of AdamW's (Liu et al. 2025), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""What the average of gradients keeps of itself at each step."""
ITERATIONS = 5
"""The number of Newton-Schulz iterations."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The coefficients of the odd polynomial that is iterated, of degree five. It drives singular values to about 1."""


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices `[N,A,B]` with the singular vectors of `x` and singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon, as the module's docstring describes it. `dtype` is the precision in which it multiplies matrices."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr})
        self.dtype = dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step along the gradients. `closure` computes them and the loss anew, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                direction = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                alike.setdefault((direction.shape[0], direction.shape[1]), []).append((parameter, direction))
            for shape, members in alike.items():  # matrices of one shape are multiplied together
                steps = orthogonalise(torch.stack([direction for _, direction in members]).to(self.dtype))
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.add_(step.view(parameter.shape), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)
        return loss


def make_optimizers(
    model: nn.Module, learning_rate: float, beta2: float, dtype: torch.dtype, *, muon: bool
) -> list[torch.optim.Optimizer]:
    """AdamW, without weight decay, for the parameters of `model`; `muon`: and Muon for the kernels of its convolutions.

    `dtype` is the precision in which Muon multiplies.
    """
    kernels = [module.weight for module in model.modules() if muon and isinstance(module, nn.Conv2d)]
    taken = {id(kernel) for kernel in kernels}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    chosen: list[torch.optim.Optimizer] = []
    if kernels:
        chosen.append(Muon(kernels, learning_rate, dtype))
    if others:
        fused = others[0].device.type in ("cpu", "cuda")
        chosen.append(torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, beta2), weight_decay=0.0, fused=fused))
    return chosen
