"""Small data sets and runs, and what tells two of them apart."""

import csv
import os
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from torch import nn
from udml.data import Batch, DataSpec, MultimodalData, TensorSet
from udml.layers import Noise
from udml.training import TrainConfig

SIZES = {"train": 98, "validation": 40, "test": 40}
TINY = TrainConfig(epochs=6, batch_size=32, width=8, device="cpu")
DIGITS = {"data": "digits", "epochs": 4, "batch_size": 300, "width": 8, "device": "cpu"}


class Encoder(nn.Sequential):
    def __init__(self, features: int, width: int, dropout: float = 0.0):
        super().__init__(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
        self.out_features = width


def make_data(unit: float = 0.25, dropout: float = 0.0, names=("ear", "eye")) -> MultimodalData:
    """Three classes that either of two modalities tells apart."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(len(names), 3, 5, generator=generator)
    splits, start = {}, 0
    for split, size in SIZES.items():
        target = torch.arange(size) % 3
        inputs = {n: c[target] + torch.randn(size, 5, generator=generator) for n, c in zip(names, centres, strict=True)}
        splits[split] = TensorSet(Batch(inputs, target, torch.arange(start, start + size)))
        start += size
    spec = DataSpec("tiny", names, ("a", "b", "c"), "classification", dict.fromkeys(names, Noise(unit)))
    return MultimodalData(spec, *splits.values(), lambda width: {n: Encoder(5, width, dropout) for n in names})


def make_arrays(size: int = 120) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Three classes; float64 features and uint8 images."""
    draw = np.random.default_rng(0)
    target = np.arange(size) % 3
    ear = draw.normal(size=(3, 6))[target] + draw.normal(size=(size, 6))
    eye = (60 * target[:, None, None, None] + draw.integers(0, 100, (size, 3, 8, 8))).astype(np.uint8)
    return {"ear": ear, "eye": eye}, target


class Convolution(nn.Conv2d):
    """uint8 or float images to (B, width, h / 2, w / 2)."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, width, 2, 2)
        self.out_features = width


def make_scenes() -> MultimodalData:
    """Segmentation of uint8 images and depth maps; one pixel in ten has no class."""
    generator = torch.Generator().manual_seed(2)
    splits = []
    for start, size in ((0, 12), (12, 6), (18, 6)):
        target = torch.randint(0, 2, (size, 4, 4), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
        rgb = (100 * target[:, None] + torch.randint(0, 100, (size, 3, 8, 8), generator=generator)).to(torch.uint8)
        depth = target[:, None] + torch.randn(size, 1, 8, 8, generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.1] = 255
        splits.append(TensorSet(Batch({"rgb": rgb, "depth": depth}, target, torch.arange(start, start + size))))
    noise = {"rgb": Noise(1.0, 2.0, clamp=(0, 255), normalize=(255, 0.5, 0.25)), "depth": Noise(0.25)}
    spec = DataSpec("scenes", ("rgb", "depth"), ("wall", "floor"), "segmentation", noise)
    return MultimodalData(spec, *splits, lambda width: {"rgb": Convolution(3, width), "depth": Convolution(1, width)})


class Stop(Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, step):
        if trainer.current_epoch == self.epoch and step == 1:
            raise KeyError("stopped")


def assert_same(first, second, where: str = "") -> None:
    """Bit for bit, through dictionaries and lists."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for name in first:
            assert_same(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    else:
        assert first == second or first != first, where


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def one_core() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
