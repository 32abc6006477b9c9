"""`Layers`: the list of layers that the networks are built of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

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
