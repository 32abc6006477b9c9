"""The networks do what their docstrings promise, before any training."""

from __future__ import annotations

import pytest
import torch

from aeimg.entropy import LEVELS
from aeimg.models import unet
from aeimg.models.hyperprior import Hyperprior, HyperpriorConfig
from aeimg.models.integer import STEPS, FloatScales, IntegerScales, ScalesConfig, freeze, put, take
from aeimg.models.unet import UNet, UNetConfig

CPU = torch.device("cpu")
SMALL = HyperpriorConfig(codes=16, width8=8, width16=8, hyper=4, features=8, context=8, hidden=8)


def jolt(network: torch.nn.Module, scale: float = 0.3) -> None:
    """Networks start with zeros in their last layers; tests need them to do something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale / parameter[0].numel() ** 0.5 * torch.randn(parameter.shape, generator=generator))


def test_the_denoiser_starts_as_the_identity_and_is_homogeneous():
    network = UNet(UNetConfig(channels=(8, 8, 8), blocks=(1, 1, 2), blocks_up=(1, 1), slope=0.1))
    x, sigma = torch.rand(2, 3, 32, 48), torch.tensor([10.0, 30.0])
    torch.testing.assert_close(network(x, sigma), x)
    jolt(network)
    torch.testing.assert_close(network(0.5 * x, 0.5 * sigma), 0.5 * network(x, sigma), atol=1e-5, rtol=1e-4)


def test_units_that_no_image_excites_still_learn():
    """Without a slope below zero nothing would ever bring them back."""
    network = UNet(UNetConfig(channels=(8, 8), blocks=(1, 1), blocks_up=(1,), slope=0.1))
    jolt(network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "conv1" in name:
                parameter.copy_(-parameter.abs())
            if name == "head.weight" or "down" in name:
                parameter.copy_(parameter.abs())
    network(torch.rand(1, 3, 16, 16), torch.tensor([9.0])).square().sum().backward()
    dead = network.encoder[0][0].conv1
    assert float(dead.weight.grad.abs().amax((1, 2, 3)).min()) > 0


@pytest.mark.parametrize(("blocks", "blocks_up"), [((1, 1, 2), (1, 2)), ((0, 1, 1), (2, 0)), ((2, 1, 1), (0, 1))])
@pytest.mark.parametrize("strip", [1, 1 << 12, 1 << 30])
def test_the_denoiser_in_strips_is_the_denoiser(monkeypatch, blocks, blocks_up, strip):
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=(8, 12, 16), blocks=blocks, blocks_up=blocks_up, slope=0.1))
    jolt(network)
    x, sigma = torch.rand(2, 3, 56, 40), torch.tensor([10.0, 40.0])

    # As the module's docstring has it.
    plane = (sigma / 255).view(-1, 1, 1, 1).expand(-1, 1, 56, 40)
    h = network.head(torch.nn.functional.pixel_unshuffle(torch.cat([x, plane], 1), 2))
    skips = []
    for encoder, down in zip(network.encoder, network.down, strict=False):
        skips.append(encoder(h))
        h = down(skips[-1])
    h = network.encoder[-1](h)
    for up, decoder, skip in reversed(list(zip(network.up, network.decoder, skips, strict=True))):
        h = decoder(up(h) + skip)
    expected = x - torch.nn.functional.pixel_shuffle(network.tail(h), 2)
    assert (expected - x).abs().max() > 0.1

    monkeypatch.setattr(unet, "STRIP", strip)
    with torch.inference_mode():
        torch.testing.assert_close(network(x, sigma), expected, rtol=0, atol=1e-5)


def test_the_denoiser_reaches_no_further_than_it_says():
    network = UNet(UNetConfig(channels=(4, 4, 4), blocks=(1, 1, 2), blocks_up=(1, 1)))
    jolt(network)
    side = 2 * network.reach + 32
    x = torch.rand(1, 3, side, side)
    changed = x.clone()
    changed[:, :, 0, 0] += 1
    difference = (network(x, torch.tensor([9.0])) - network(changed, torch.tensor([9.0]))).abs().amax((0, 1))
    assert difference[: network.reach, : network.reach].max() > 0
    assert difference[network.reach + 1 :].max() == 0
    assert difference[:, network.reach + 1 :].max() == 0
    assert UNet(UNetConfig()).halo < UNet(UNetConfig()).reach


def test_the_codecs_halos_are_the_reaches_of_its_transforms():
    from aeimg.hyperprior_codec import ANALYSIS_HALO, SYNTHESIS_HALO

    def farthest(change: torch.Tensor) -> int:
        return int(change.abs().amax((0, 1)).nonzero().max())

    torch.manual_seed(0)
    network = Hyperprior(SMALL)  # as deep as the default
    network.fit_linear(torch.rand(2000, 768) * 255)
    jolt(network)
    side, q = ANALYSIS_HALO + SYNTHESIS_HALO + 4, torch.tensor([0.5])
    x = torch.rand(1, 3, 16 * side, 16 * side)
    changed = x.clone()
    changed[:, :, :16, :16] += 1
    assert farthest(network.analyse(x, q) - network.analyse(changed, q)) == ANALYSIS_HALO
    y = torch.randn(1, 16, side, side)
    other = y.clone()
    other[:, :, 0, 0] += 1
    assert farthest(network.synthesise(y, q) - network.synthesise(other, q)) // 16 == SYNTHESIS_HALO


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (7, 4)])
def test_every_symbol_belongs_to_exactly_one_step(height, width):
    x = torch.arange(2 * 12 * height * width).view(2, 12, height, width)
    parts = [take(x, step) for step in range(STEPS)]
    assert torch.equal(torch.cat(parts, 1).sort(1).values, x.flatten(1))
    again = torch.zeros_like(x)
    for step, part in enumerate(parts):
        put(again, step, part)
    assert torch.equal(again, x)


def test_each_step_takes_a_quarter_of_the_symbols_and_of_each_position():
    x = torch.arange(64)[None, None].expand(1, 320, -1).reshape(1, 320, 8, 8)
    for step in range(STEPS):
        assert torch.bincount(take(x, step)[0], minlength=64).tolist() == [80] * 64


def test_the_linear_shortcut_alone_is_pca():
    torch.manual_seed(0)
    network = Hyperprior(SMALL)
    basis = torch.linalg.qr(torch.randn(768, 768))[0]
    blocks = 127.5 + (torch.randn(5000, 768) * torch.linspace(40, 0, 768).clamp(min=0) ** 2 / 40) @ basis
    network.fit_linear(blocks)
    torch.testing.assert_close(network.linear @ network.linear.T, torch.eye(16), atol=1e-4, rtol=0)
    x = torch.nn.functional.pixel_shuffle(blocks[:4, :, None, None], 16).reshape(4, 3, 16, 16) / 255
    q = torch.ones(4)
    restored = network.synthesise(network.analyse(x, q), q)
    centred = blocks[:4] - 127.5
    projected = 127.5 + centred @ network.linear.T @ network.linear
    expected = torch.nn.functional.pixel_shuffle(projected[:, :, None, None], 16) / 255
    torch.testing.assert_close(restored, expected, atol=1e-3, rtol=0)


def test_dequantise_mirrors_quantise():
    torch.manual_seed(0)
    network = Hyperprior(SMALL)
    jolt(network)
    network.fit_linear(torch.rand(2000, 768) * 255)
    q = torch.tensor([0.3, 0.9])
    y = 4 * torch.randn(2, 16, 5, 7)
    side, symbols = network.quantise(y, q)
    codes = network.dequantise(side, symbols, q)
    assert symbols.abs().max() > 1
    # rounding towards zero, where it pays, may cost one step more than rounding to the nearest
    assert (codes - y).abs().max() <= 1.5 + 1e-4


@pytest.fixture(scope="module")
def scales():
    torch.manual_seed(0)
    config = ScalesConfig(codes=16, hyper=4, features=8, context=8, hidden=16)
    network = FloatScales(config)
    jolt(network, 1.0)
    with torch.no_grad():
        network.base.add_(20)
    return network, IntegerScales(freeze(network), config, LEVELS)


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(-9, 10, (4, 3, 2), generator=generator, dtype=torch.int32)
    symbols = torch.randint(-300, 301, (16, 12, 8), generator=generator, dtype=torch.int32)
    return side, symbols


def test_integer_scales_are_the_trained_ones_to_within_one_index(scales):
    network, integer = scales
    side, symbols = inputs()
    q = torch.tensor([49 / 99])
    features = network.expand(side[None] * network.side_step(q))
    assert torch.allclose(16 * features[0], integer.expand(side, 50), atol=1)
    for step in range(4):
        earlier = [take(symbols[None], number) for number in range(step)]
        real = network(step, features, [part.abs().float() for part in earlier], q)[0]
        exact = integer.indexes(step, integer.expand(side, 50), [integer.magnitudes(part[0]) for part in earlier], 50)
        assert (exact.float() - real.clamp(0, LEVELS - 1)).abs().max() < 1.0
        assert exact.unique().numel() > 5


def test_integer_scales_do_not_depend_on_threads_or_on_float_settings(scales):
    _, integer = scales
    side, symbols = inputs(1)

    def run():
        earlier = [integer.magnitudes(take(symbols[None], step)[0]) for step in range(4)]
        return [integer.indexes(step, integer.expand(side, 77), earlier[:step], 77) for step in range(4)]

    expected = run()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for precision in ("highest", "medium"):
                torch.set_float32_matmul_precision(precision)
                with torch.autocast("cpu", torch.bfloat16):
                    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")


def test_the_largest_symbols_leave_the_sums_exact(scales):
    _, integer = scales
    side = torch.full((4, 3, 2), 2**31 - 1, dtype=torch.int32)
    symbols = torch.full((16, 12, 8), -(2**31), dtype=torch.int32)
    for step in range(4):
        earlier = [integer.magnitudes(take(symbols[None], number)[0]) for number in range(step)]
        index = integer.indexes(step, integer.expand(side, 100), earlier, 100)
        assert 0 <= int(index.min()) <= int(index.max()) < LEVELS


def test_weights_whose_sums_float32_would_round_are_refused(scales):
    network, _ = scales
    tensors = freeze(network)
    tensors["expand2.bias"] = tensors["expand2.bias"] + (1 << 24)
    with pytest.raises(ValueError, match="not exact"):
        IntegerScales(tensors, network.config, LEVELS)


def test_freezing_keeps_the_sums_of_wide_layers_exact():
    """Rows of 576 equal weights of 127 would sum to more than 2^24: they get fewer bits."""
    config = ScalesConfig(codes=16, hyper=4, features=8, context=64, hidden=16)
    network = FloatScales(config)
    with torch.no_grad():
        network.expand2.weight.fill_(1.0)
    tensors = freeze(network)
    assert (tensors["expand2.weight"].double().abs().sum(1) * 255 < 2**24).all()
    IntegerScales(tensors, config, LEVELS)


def test_the_scales_learn_through_their_rounding(scales):
    network, _ = scales
    side, _ = inputs()
    index = network(0, network.expand(side[None].float()), [], torch.tensor([0.5]))
    index.sum().backward()
    for name in ("expand1", "expand2", "expand3", "combine1.0", "combine2.0"):
        assert network.get_submodule(name).weight.grad.abs().max() > 0
    network.zero_grad(set_to_none=True)
