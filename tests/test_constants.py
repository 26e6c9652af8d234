"""Python numbers as tensors: kept for a stream, one launch the first time."""

import torch

from udml_kernels import _constants

from . import DEVICE


def _kept(numbers, stream=1):
    return _constants._kept_for(stream, numbers, torch.float32, DEVICE)


def test_a_number_is_made_once_for_each_stream(monkeypatch):
    monkeypatch.setattr(_constants, "_kept", {})
    first = _kept([0.5, 2.0])
    assert first.tolist() == [0.5, 2.0]
    assert _kept([0.5, 2.0]) is first
    assert _kept([0.5, 2.0], stream=2) is not first
    assert _kept([0.5]) is not first
    assert str(_kept([-0.0]).item()) == "-0.0" and str(_kept([0.0]).item()) == "0.0"
    assert _kept([float("nan")]) is _kept([float("nan")])


def test_no_numbers_are_an_empty_tensor():
    assert _constants.numbers_tensor([], torch.float64, DEVICE).shape == (0,)


def test_no_more_than_the_capacity_is_kept(monkeypatch):
    monkeypatch.setattr(_constants, "_kept", {})
    monkeypatch.setattr(_constants, "CAPACITY", 2)
    kept = [_kept([float(n)]) for n in range(3)]
    assert [tensor.item() for tensor in kept] == [0, 1, 2]
    assert _kept([1.0]) is kept[1] and _kept([2.0]) is not kept[2]


def test_what_inference_mode_made_is_saved_for_a_gradient(monkeypatch):
    monkeypatch.setattr(_constants, "_kept", {})
    with torch.inference_mode():
        factor = _kept([3.0])
    x = torch.ones(1, requires_grad=True)
    (x * factor).backward()
    assert x.grad.item() == 3
