"""What is encoded is decoded, exactly, anywhere; and for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aeimg import ChecksumMismatch, InvalidLatent, TruncatedLatent, hyperprior_codec, process, registry, weights
from aeimg.metrics import psnr
from aeimg.models.integer import quality_to_q

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def shipped():
    return registry.get(None, "compress", CPU)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def same(a, b) -> bool:
    pairs = [(x, y) for p, r in zip(a, b, strict=True) for s, t in zip(p, r, strict=True)
             for x, y in ((s.side, t.side), (s.codes, t.codes))]  # fmt: skip
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_symbols_come_back_exactly(shipped, small, quality):
    height, width = small.shape[:2]
    (latent,) = shipped.encode(tensor(small), quality, CPU, torch.float32)
    data = shipped.to_bytes(latent, quality)
    assert same([shipped.from_bytes(data, width, height, quality)], [latent])


def test_files_decode_to_the_same_symbols_however_they_are_decoded(shipped, photograph):
    """1 and 2 threads, batch 1 and 8, fp32 and bf16, both memory formats: identical symbols, byte for byte."""
    crops = [np.ascontiguousarray(photograph[y : y + 128, x : x + 160]) for y in (0, 130) for x in (0, 90, 180, 270)]
    files = list(process(iter(crops), "compress", quality=60))
    latents = [codec_latent(file) for file in files]
    expected = [shipped.from_bytes(item.data, 160, 128, 60) for item in latents]
    threads = torch.get_num_threads()
    pictures = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for layout in (torch.contiguous_format, torch.channels_last):
                shipped.network.to(memory_format=layout)
                again = [shipped.from_bytes(item.data, 160, 128, 60) for item in latents]
                assert same(again, expected)
                for dtype in (torch.float32, torch.bfloat16):
                    for batch in (1, 8):
                        parts = [again[n : n + batch] for n in range(0, 8, batch)]
                        pictures.append(torch.cat([shipped.decode(p, (3, 128, 160), 60, CPU, dtype) for p in parts]))
    finally:
        torch.set_num_threads(threads)
        shipped.network.to(memory_format=torch.channels_last)
    for picture in pictures[1:]:
        assert (picture.float() - pictures[0].float()).abs().mean() < 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_what_the_cpu_encoded(shipped, photograph):
    (latent,) = shipped.encode(tensor(photograph), 60, CPU, torch.float32)
    cuda = torch.device("cuda")
    other = registry.get(None, "compress", cuda)
    height, width = photograph.shape[:2]
    assert same([other.from_bytes(shipped.to_bytes(latent, 60), width, height, 60)], [latent])
    here = shipped.decode([latent], (3, height, width), 60, CPU, torch.float32)
    there = other.decode([latent], (3, height, width), 60, cuda, torch.float32)
    assert (here.int() - there.int()).abs().max() <= 2


def codec_latent(file: bytes):
    from aeimg import container

    latent = container.read(file)
    assert isinstance(latent, container.Coded)
    return latent


def test_rate_and_quality_rise_together(shipped, photograph):
    points = []
    for quality in (1, 20, 40, 60, 80, 100):
        file = process(photograph, "compress", quality=quality)
        points.append((len(file), psnr(process(file, "decompress", kind="numpy"), photograph)))
    assert points == sorted(points)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(points, points[1:], strict=False))


def test_the_size_is_what_the_tables_promise(shipped, photograph):
    quality = 60
    (latent,) = shipped.encode(tensor(photograph), quality, CPU, torch.float32)
    tables = weights.load_tensors(weights.find_weights(shipped.label))[1]["tables"].double()
    ideal = 0.0
    for tile in latent:
        for symbols, index in shipped.groups(tile, quality):
            column = torch.from_numpy(symbols).long() + codec_reach()
            probability = tables[torch.from_numpy(index).long(), column] / 2**24
            coded = torch.from_numpy(index) > 0
            # the last column is the escape, which 32 raw bits follow
            escape = 32 - (tables[torch.from_numpy(index).long(), -1] / 2**24).log2()
            ideal += float(torch.where(probability > 0, -probability.log2(), escape)[coded].sum())
    assert 8 * len(shipped.to_bytes(latent, quality)) == pytest.approx(ideal, rel=0.01)


def codec_reach() -> int:
    from aeimg.entropy import REACH

    return REACH


def test_tiled_coding_is_that_of_the_whole_but_for_its_edges(shipped, photograph, monkeypatch):
    x = tensor(np.tile(photograph, (2, 2, 1))[:512, :640])

    def run():
        latents = shipped.encode(x, 60, CPU, torch.float32)
        data = shipped.to_bytes(latents[0], 60)
        back = shipped.from_bytes(data, 640, 512, 60)
        picture = shipped.decode([back], (3, 512, 640), 60, CPU, torch.float32)
        return len(data), -10 * torch.log10((picture / 255 - x).square().mean()).item(), len(back)

    whole = run()
    monkeypatch.setattr(hyperprior_codec, "TILE", 16)
    tiled = run()
    assert (whole[2], tiled[2]) == (1, 6)
    assert tiled[1] == pytest.approx(whole[1], abs=0.1)
    assert tiled[0] == pytest.approx(whole[0], rel=0.05)


def test_tiles_decode_in_any_order(shipped, photograph, monkeypatch):
    monkeypatch.setattr(hyperprior_codec, "TILE", 8)
    (latent,) = shipped.encode(tensor(photograph[:250, :200]), 30, CPU, torch.float32)
    assert len(latent) == 4
    streams = [shipped.to_bytes([tile], 30)[8:] for tile in latent]
    for tile, stream in reversed(list(zip(latent, streams, strict=True))):
        alone = shipped._decode_tile(stream, tuple(tile.codes.shape), 30)
        assert (alone.crc, torch.equal(alone.codes, tile.codes)) == (tile.crc, True)


def test_damaged_data_is_refused_by_name(shipped, small):
    (latent,) = shipped.encode(tensor(small), 40, CPU, torch.float32)
    data = shipped.to_bytes(latent, 40)
    with pytest.raises(TruncatedLatent):
        shipped.from_bytes(data[:-4], 143, 101, 40)
    with pytest.raises(InvalidLatent, match="longer than its picture"):
        shipped.from_bytes(data + b"more", 143, 101, 40)
    with pytest.raises(ChecksumMismatch):
        shipped.from_bytes(data[:4] + bytes([data[4] ^ 1]) + data[5:], 143, 101, 40)
    rng = np.random.default_rng(0)
    for _ in range(25):
        mutated = bytearray(data)
        mutated[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        with pytest.raises(InvalidLatent):
            shipped.from_bytes(bytes(mutated), 143, 101, 40)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.aei")), ids=lambda p: p.stem)
def test_golden_files_decode_for_ever(path):
    """Made by `make_golden` below, once per version of the format and of the weights; never made again."""
    picture = process(path, "decompress", kind="numpy", dtype="fp32")
    expected = np.load(path.with_suffix(".npy"))
    assert np.abs(picture.astype(int) - expected).max() <= 1


def test_there_is_a_golden_file_for_the_shipped_weights():
    assert any(codec_latent(p.read_bytes()).label == registry.BUILTINS["aeimg-codec"][1] for p in GOLDEN.glob("*.aei"))


def make_golden(folder: Path = GOLDEN) -> None:
    """Writes the golden files of the shipped weights: a drawn picture, in colour and in grey."""
    y, x = np.mgrid[0:56, 0:72] / 72
    waves = [np.sin(9 * x * (1 + k) + 5 * y) * np.cos(4 * y * (2 - k)) for k in range(3)]
    colour = np.rint(127.5 + 100 * np.stack(waves, 2)).astype(np.uint8)
    colour[20:40, 30:50] = [200, 40, 60]
    label = registry.BUILTINS["aeimg-codec"][1]
    for name, pixels in (("colour", colour), ("grey", colour[:, :, 0])):
        # noise keeps the stored mode from taking over
        noise = np.random.default_rng(0).integers(-20, 21, pixels.shape)
        noisy = np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)
        path = folder / f"format1-{label}-{name}.aei"
        path.write_bytes(process(noisy, "compress", quality=70, dtype="fp32"))
        np.save(path.with_suffix(".npy"), process(path, "decompress", kind="numpy", dtype="fp32"))


def test_qualities_span_the_whole_range_of_rates_and_files_name_their_weights(shipped, small):
    assert quality_to_q(torch.tensor([1, 100])).tolist() == [0.0, 1.0]
    latent = codec_latent(process(small, "compress"))
    assert latent.digest == weights.load_tensors(weights.find_weights(latent.label))[2]
