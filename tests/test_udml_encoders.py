"""The data sets' small encoders."""

import pytest
import torch
from udml.encoders import ConvEncoder1d, FrameEncoder, Framewise, MLPEncoder, SegmentationEncoder, SpectrogramEncoder


@pytest.mark.parametrize(
    "encoder, shape, expected",
    [
        (ConvEncoder1d(3, 8), (2, 3, 128), (2, 8, 16)),
        (MLPEncoder(5, 8), (2, 5), (2, 8)),
        (SpectrogramEncoder(8), (2, 1, 257, 188), (2, 8, 17, 12)),
        (FrameEncoder(8), (2, 3, 4, 64, 96), (2, 8, 4, 2, 3)),
        (SegmentationEncoder(1, 8), (2, 1, 48, 64), (2, 8, 6, 8)),
        (Framewise(MLPEncoder(5), 64), (2, 5, 3, 1, 1), None),
    ],
)
def test_encoders_give_their_width(encoder, shape, expected):
    if expected is None:
        encoder.encoder.insert(0, torch.nn.Flatten())
        expected = (2, 64, 3)
    features = encoder(torch.randn(shape))
    assert features.shape == expected and encoder.out_features == expected[1]
    features.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_frames_are_encoded_one_by_one():
    encoder = FrameEncoder(8).eval()
    x = torch.randn(2, 3, 4, 32, 32)
    whole = encoder(x)
    for t in range(4):
        torch.testing.assert_close(whole[:, :, t], encoder.encoder(x[:, :, t]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"x: expected frames \(B, C, T, H, W\), got \(2, 3, 32, 32\)"):
        encoder(x[:, :, 0])
    with pytest.raises(ValueError, match="out_features: expected the width of the encoder"):
        Framewise(torch.nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize("build", [ConvEncoder1d, MLPEncoder, SegmentationEncoder])
def test_encoders_refuse_sizes_that_are_none(build):
    with pytest.raises(ValueError, match="width: expected an integer of at least 1, got 0"):
        build(3, 0)
