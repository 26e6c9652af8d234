"""The data sets' small encoders, and what a model asks of an encoder."""

import copy
import pickle

import pytest
import torch
from torch import nn
from udml.encoders import (
    ConvEncoder1d,
    FrameEncoder,
    Framewise,
    MLPEncoder,
    SegmentationEncoder,
    SpectrogramEncoder,
    Tokens,
    encoder_for,
)
from udml.models import METHODS, build_model


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


@pytest.mark.parametrize(
    "shape, task, kind",
    [
        ((5,), "classification", MLPEncoder),
        ((3, 20), "classification", ConvEncoder1d),
        ((2, 16, 16), "classification", SpectrogramEncoder),
        ((3, 4, 32, 32), "classification", FrameEncoder),
        ((2, 16, 16), "segmentation", SegmentationEncoder),
    ],
)
def test_an_encoder_suits_a_shape(shape, task, kind):
    encoder = encoder_for(shape, 8, task)
    assert type(encoder) is kind and encoder(torch.randn(2, *shape)).shape[:2] == (2, 8)
    with pytest.raises(ValueError, match=r"shape: expected samples .*\(C, H, W\).*, got \(\)"):
        encoder_for((), 8, task)


def test_encoders_are_copied_and_pickled():
    encoder = Framewise(SegmentationEncoder(3, 8))
    expected = {"encoder": {"module": "SegmentationEncoder", "arguments": {"channels": 3, "width": 8}}}
    for other in (encoder, copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other._arguments == expected
        assert [*other.state_dict()] == [*encoder.state_dict()]


# What a model asks of an encoder: (B, C, ...).


class Transformer(nn.Module):
    """(B, T, 5) to (B, T, 8), or with `turned` to (B, 8, T)."""

    def __init__(self, turned: bool = False):
        super().__init__()
        self.enter, self.turned = nn.Linear(5, 8), turned
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        tokens = self.layer(self.enter(x)).relu()
        return tokens.mT if self.turned else tokens


class Own(nn.Module):
    """A norm that torch does not have, over the last dimension."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True) * self.scale


class Recurrent(nn.GRU):
    def __init__(self):
        super().__init__(5, 8, batch_first=True)

    def forward(self, x):
        return super().forward(x)[0]


TOKENS = {
    "transformer": Transformer,
    "linear": lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU()),
    "norm": lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8)),
    "own norm": lambda: nn.Sequential(nn.Linear(5, 8), Own()),
    "recurrent": Recurrent,
}


@pytest.mark.parametrize("method", ["static", "udml"])
@pytest.mark.parametrize("length", [8, 7])
@pytest.mark.parametrize("encoder", TOKENS)
def test_tokens_are_not_pooled_over_their_channels(encoder, length, method):
    encoder, x = TOKENS[encoder](), torch.randn(4, length, 5)
    model = build_model(method, {"text": encoder}, 3, width=8).eval()
    with pytest.raises(
        ValueError, match=r"encoders\['text'\]: expected features \(B, 8, ...\), got .*udml.encoders.Tokens"
    ):
        model({"text": x})
    turned = build_model(method, {"text": Tokens(encoder, 8)}, 3).eval()
    features = encoder(x)
    # The embedding is pointwise, then pooled over the tokens: so it is for each token, as rows of a (B T, 1) batch.
    expected = turned.heads["text"].mu(features.flatten(0, 1)).unflatten(0, (4, length)).mean(1)
    torch.testing.assert_close(turned({"text": x}).features[0], expected, rtol=1e-4, atol=1e-5)


def test_square_features_with_channels_first_are_taken():
    for encoder, x in (
        (ConvEncoder1d(5, 8), torch.randn(4, 5, 64)),
        (Transformer(turned=True), torch.randn(4, 8, 5)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)), torch.randn(4, 3, 8, 8)),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)).to(memory_format=torch.channels_last), None),
    ):
        x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last) if x is None else x
        assert build_model("udml", {"a": encoder}, 3, width=8).eval()({"a": x}).logits.shape == (4, 3)


def test_tokens_say_what_they_expect():
    with pytest.raises(ValueError, match=r"encoder: expected tokens \(B, T, ..., 8\), got \(2, 8\)"):
        Tokens(nn.Linear(5, 8), 8)(torch.randn(2, 5))
    with pytest.raises(ValueError, match="out_features: expected the width"):
        Tokens(Transformer())


class Folded(nn.Sequential):
    """Frames (B, C, T, H, W) as samples of a network of images, as audio-visual code has it."""

    def forward(self, x):
        return super().forward(x.transpose(1, 2).flatten(0, 1))


@pytest.mark.parametrize("method", METHODS)
def test_folded_frames_are_named(method):
    images, x = nn.Conv2d(3, 8, 3, 2), torch.randn(4, 3, 3, 9, 9)
    both = {"sound": torch.randn(4, 5), "frames": x}
    model = build_model(method, {"sound": MLPEncoder(5, 8), "frames": Folded(images)}, 3)
    expected = r"encoders\['frames'\]: expected features \(B, 8, ...\) of 4 samples, got shape \(12, 8, 4, 4\)"
    with pytest.raises(ValueError, match=f"{expected}.*frames.*udml.encoders.Framewise"):
        model(both, sigma=torch.zeros(4, 2))
    model = build_model(method, {"sound": MLPEncoder(5, 8), "frames": Framewise(images, 8)}, 3)
    assert model(both, sigma=torch.zeros(4, 2)).logits.shape == (4, 3)


def test_features_that_are_no_tensor_are_named():
    model = build_model("udml", {"a": nn.GRU(5, 8, batch_first=True)}, 3, width=8)
    with pytest.raises(TypeError, match=r"encoders\['a'\]: expected features \(B, 8, ...\), got tuple"):
        model({"a": torch.randn(4, 8, 5)})
