"""What several networks are built of: `Layers`, a list of layers, and `ResidualBlock`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import Tensor, nn
from torch.nn import functional as F

L = TypeVar("L", bound=nn.Module)


class Layers(nn.ModuleList, Generic[L]):
    """An `nn.ModuleList` of modules of one type, which type checkers then know. Its state has the same names."""

    if TYPE_CHECKING:

        def __init__(self, modules: Iterable[L]) -> None: ...
        @overload
        def __getitem__(self, idx: slice) -> Layers[L]: ...
        @overload
        def __getitem__(self, idx: int) -> L: ...
        def __getitem__(self, idx: int | slice) -> L | Layers[L]: ...
        def __iter__(self) -> Iterator[L]: ...


class ResidualBlock(nn.Module):
    """x + conv(rectify(conv(x))), 3x3, from `channels` to `inner` channels and back."""

    def __init__(self, channels: int, inner: int, slope: float, *, bias: bool = False) -> None:
        super().__init__()
        self.slope = slope
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(inner, channels, 3, padding=1, bias=bias)
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        # A small start keeps the sum of all blocks near the identity, which trains at a higher rate.
        nn.init.normal_(self.conv2.weight, std=0.1 / (9 * inner) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        # Added in place: fresh memory costs more than the sum.
        return self.conv2(F.leaky_relu_(self.conv1(x), self.slope)).add_(x)
