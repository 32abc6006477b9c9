"""The optimiser does what its docstring says."""

from __future__ import annotations

import torch
from torch import nn

from aeimg.training.optimizers import Muon, make_optimizers, orthogonalise


def test_singular_values_are_brought_near_one():
    torch.manual_seed(0)
    for shape in ((3, 20, 50), (2, 50, 20)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.6 < values.min() < values.max() < 1.3


def test_muon_takes_the_kernels_and_adamw_the_rest():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    muon, adamw = make_optimizers(model, 1e-3, 0.99, torch.float32, muon=True)
    assert isinstance(muon, Muon)
    assert [p.dim() for p in muon.param_groups[0]["params"]] == [4, 4]
    assert [p.dim() for p in adamw.param_groups[0]["params"]] == [1, 1]
    (alone,) = make_optimizers(model, 1e-3, 0.99, torch.float32, muon=False)
    assert len(alone.param_groups[0]["params"]) == 4


def test_muon_computes_the_loss_of_a_closure_with_gradients_and_returns_it():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3)
    muon, before = Muon([layer.weight], 1e-2, torch.float32), layer.weight.detach().clone()

    def closure():
        loss = layer.weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert muon.step() is None
    assert torch.equal(layer.weight, before)  # there was no gradient yet
    assert muon.step(closure) == float(before.square().sum())
    assert not torch.equal(layer.weight, before)
