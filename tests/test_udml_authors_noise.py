"""The levels and the noise of the authors' code."""

import pytest
import torch
from udml.layers import Noise, NoiseInjector
from udml.models import authors_levels, authors_noise

import udml_kernels

from .authors_model import (
    authors_noise_audio,
    authors_noise_image,
)

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def test_levels():
    seed, ids = torch.tensor([5]), torch.arange(20_000)
    levels = authors_levels(len(ids), 2, seed, ids)
    clean = (levels.level == 1).all(1)
    # Half are clean by design, of the others one in 121 by chance; 4 standard deviations of a mean are 0.015.
    assert abs(clean.double().mean() - (0.5 + 0.5 / 121)) < 0.015
    noisy = levels.level[~clean]
    assert noisy.unique().tolist() == list(range(1, 12))
    shares = torch.stack([(noisy == k).double().mean() for k in range(2, 12)])
    assert (shares - 1 / 11).abs().max() < 0.012
    names = [udml_kernels.KINDS[k] for k in levels.kind.unique().tolist()]
    assert sorted(names) == ["gaussian", "replace"]
    assert torch.equal(levels.kind == udml_kernels.KINDS.index("replace"), levels.level == 11)
    torch.testing.assert_close(levels.sigma, torch.where(levels.level == 1, 0, levels.level))
    part = authors_levels(3, 2, seed, ids[[70, 3, 900]])
    torch.testing.assert_close(part.level, levels.level[[70, 3, 900]])


def test_noise():
    """Of all levels; one draw for the colour channels, whole numbers, level 11 without the input."""
    count, seed = 400, torch.tensor([8])
    ids = torch.randperm(1000)[:count]
    drawn = authors_levels(count, 2, seed, ids)
    audio, image = torch.randn(count, 1, 3, 4), torch.randint(256, (count, 3, 4, 5), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    noises = [Noise(), Noise(power=2, clamp=(0, 255), normalize=(255, mean.tolist(), std.tolist()))]
    inject = NoiseInjector([authors_noise(noise) for noise in noises])
    got = inject([audio, image], drawn.sigma, kind=drawn.kind, seed=seed, sample_ids=ids)

    eps = udml_kernels.normal((count, 1, 3, 4), seed, stream=1, sample_ids=ids)
    expected = authors_noise_audio(audio, drawn.level[:, 0], eps)
    assert expected.max() == 255 and expected.min() < -255
    torch.testing.assert_close(got[0], expected, rtol=1e-5, atol=1e-4)

    eps = udml_kernels.normal((count, 4, 5), seed, stream=1 + 256, sample_ids=ids).unsqueeze(1)
    expected = authors_noise_image(image.float(), drawn.level[:, 1], eps, wrap=False)
    pixels = (got[1] * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)) * 255
    assert (pixels - pixels.round()).abs().max() < 1e-3
    # A sum that rounds to another side of a whole number: less than one in 10,000.
    assert ((pixels - expected).abs() > 0.5).float().mean() < 1e-4
    grey = drawn.level[:, 1] == 11
    assert grey.any() and bool((pixels[grey].round() == pixels[grey][:, :1].round()).all())


def test_a_shared_draw_of_every_kind():
    x, sigma, seed = torch.rand(4, 3, 5), torch.full((4, 1), 0.3), torch.tensor([8])
    inject = NoiseInjector([Noise(clamp=(-2, 2), shared_channels=True)])
    for kind in (*udml_kernels.KINDS, torch.arange(4)):
        got = inject([x], sigma, kind=kind, seed=seed)[0]
        for c in range(3):
            options = {"kind": kind, "clamp": (-2, 2), "seed": seed}
            torch.testing.assert_close(got[:, c], udml_kernels.inject_noise(x[:, c], sigma[:, 0], **options))
    assert inject([x[:0]], sigma[:0], seed=seed)[0].shape == (0, 3, 5)
    with pytest.raises(ValueError, match=r"inputs\[0\]: expected \(B, C, ...\) to share a draw over C, got \(4,\)"):
        inject([x[:, 0, 0]], sigma, seed=seed)
