"""How weights are moved: Muon for the kernels of convolutions, AdamW for everything else.

Muon (Jordan et al. 2024) steps along the momentum with all its singular values made equal, which a few Newton-Schulz
iterations do without a decomposition; a convolution's kernel counts as a matrix of outputs by inputs. Steps are scaled
to the size of AdamW's (Liu et al. 2025), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial of degree five that is iterated: it drives singular values of 0..1 towards one, fast."""


def orthogonalise(x: Tensor) -> Tensor:
    """Matrices `[N,A,B]` with their singular values brought near one."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """See the module's docstring. `dtype` is what the matrices are multiplied in."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
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
            for shape, members in alike.items():  # matrices of one shape in one go
                steps = orthogonalise(torch.stack([direction for _, direction in members]).to(self.dtype))
                for (parameter, _), step in zip(members, steps, strict=True):
                    parameter.add_(step.view(parameter.shape), alpha=-0.2 * group["lr"] * max(shape) ** 0.5)


def optimizers(
    model: nn.Module, lr: float, beta2: float, dtype: torch.dtype, *, muon: bool
) -> list[torch.optim.Optimizer]:
    """AdamW (no decay) for the model's parameters; with `muon`, that takes the kernels of its convolutions."""
    kernels = [module.weight for module in model.modules() if muon and isinstance(module, nn.Conv2d)]
    taken = {id(kernel) for kernel in kernels}
    others = [parameter for parameter in model.parameters() if id(parameter) not in taken]
    chosen: list[torch.optim.Optimizer] = []
    if kernels:
        chosen.append(Muon(kernels, lr, dtype))
    if others:
        fused = others[0].device.type in ("cpu", "cuda")
        chosen.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, beta2), weight_decay=0.0, fused=fused))
    return chosen
