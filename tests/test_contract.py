"""What a model leaves out gets its default in one place, and what it states wrongly is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from aeimg import ModelError, contract

PACKAGE = Path(contract.__file__).parent


def test_a_model_that_states_nothing_gets_every_default():
    class Plain(torch.nn.Module):
        def forward(self, x, sigma):
            return x

    model = contract.complete(Plain(), "denoise")
    assert {name: getattr(model, name) for name in contract.defaults("denoise")} == {
        "label": "Plain", "digest": b"", "multiple": 1, "channels": 3, "halo": None, "dtypes": None, "blind": False,
        "takes_grey": False, "takes_map": False,
    }  # fmt: skip


def test_what_a_model_states_is_kept():
    class Own(torch.nn.Module):
        label, digest, multiple, halo = "own-1", b"12", 8, 16

        @property
        def blind(self):
            return True

        def forward(self, x, sigma):
            return x

    model = contract.complete(Own(), "denoise")
    assert (model.label, model.digest, model.multiple, model.halo, model.blind) == ("own-1", b"12", 8, 16, True)


@pytest.mark.parametrize("dtypes", [torch.float32, (torch.bfloat16,)])
def test_dtypes_must_be_several_with_float32_among_them(dtypes):
    class Narrow(torch.nn.Module):
        def forward(self, x, sigma):
            return x

    model = Narrow()
    model.dtypes = dtypes
    with pytest.raises(ModelError, match="states the dtypes .*; torch.float32 must be among them"):
        contract.complete(model, "denoise")


def test_a_model_that_takes_no_attributes_is_refused_with_those_it_must_state():
    class Closed:
        __slots__ = ()

        def __call__(self, x, sigma):
            return x

    with pytest.raises(ModelError, match="does not state label, digest, multiple, channels, .*can't be given"):
        contract.complete(Closed(), "denoise")


def test_no_other_module_states_a_default_of_a_model():
    names = {*contract.defaults("denoise"), *contract.defaults("compress")}
    for path in sorted(PACKAGE.rglob("*.py")):
        asked = set(re.findall(r"getattr\(\w*model\w*, \"(\w+)\"", path.read_text()))
        assert path.name == "contract.py" or not asked & names, path
