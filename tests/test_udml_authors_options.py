"""Fusions, modalities, limits and locations of the preset "authors"."""

import pytest
import torch
from torch import nn
from udml.models import UDML, build_model

from .test_udml_authors import CLASSES, HEADS, WIDTH, trunk

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


@pytest.mark.parametrize("fusion", ["gated", "film"])
def test_heads_of_two_modalities_refuse_three(fusion):
    with pytest.raises(ValueError, match=r"widths: expected two, .* got \[5, 5, 5\]"):
        UDML({name: nn.Sequential(trunk(2)) for name in "avx"}, CLASSES, fusion, preset="authors", width=WIDTH)


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_more_modalities(fusion):
    """w_m is proportional to 1 / (s_m^2 alpha_m), or to 1 / alpha_m, and sums to M; alpha goes on as its last."""
    names = ("audio", "visual", "depth")
    model = UDML({name: nn.Sequential(trunk(2)) for name in names}, CLASSES, fusion, preset="authors", width=WIDTH)
    inputs = {name: torch.randn(3, 2, 4, 4) for name in names}
    alpha = torch.tensor([32.0, 10.0, 10.0])
    torch.testing.assert_close(model.dependency.alpha, alpha)
    for weighting in (False, True):
        output = model(inputs, sigma=torch.ones(3, 3), weighting=weighting, seed=torch.tensor([1]))
        torch.testing.assert_close(output.dependency, alpha)
        inverse = 1 / ((output.noise**2 if weighting else torch.ones(3, 3)) * alpha)
        torch.testing.assert_close(output.weights, 3 * inverse / inverse.sum(1, keepdim=True))
        alpha = output.unimodal.detach().abs().sum(2).mean(1)
        torch.testing.assert_close(model.dependency.alpha, alpha)
    torch.testing.assert_close(model.eval()(inputs).dependency, alpha)


def test_std_max_by_name():
    encoders = {name: nn.Sequential(trunk(2)) for name in ("audio", "visual")}
    for preset, limit, expected in (
        ("authors", {"audio": 0.5}, (0.5, None)),
        ("authors", {}, (None, None)),
        ("default", {"audio": 0.5}, (0.5, 100.0)),
        ("default", {"visual": None}, (100.0, None)),
        ("default", 2, (2, 2)),
        ("default", None, (None, None)),
    ):
        model = UDML(encoders, CLASSES, preset=preset, std_max=limit, width=WIDTH)
        assert tuple(head.std_max for head in model.heads.values()) == expected
    plain = build_model("pe", encoders, CLASSES, std_max={"visual": 3.0}, width=WIDTH)
    assert [head.std_max for head in plain.heads.values()] == [100.0, 3.0]
    model = UDML(encoders, CLASSES, std_max={"audio": 0.5}, width=WIDTH)
    std = model({name: torch.randn(3, 2, 4, 4) for name in encoders}, seed=torch.tensor([1])).std
    assert std[0].max() <= 0.5 < std[1].max()
    for limit, error, message in (
        ({"sound": 1.0}, ValueError, "std_max: expected the names audio, visual, got sound"),
        ({"audio": 0.0}, ValueError, r"std_max\['audio'\]: expected a positive number or None, got 0.0"),
        ({"audio": float("nan")}, ValueError, r"std_max\['audio'\]: expected a positive number"),
        ({"audio": "10"}, TypeError, r"std_max\['audio'\]: expected a positive number or None, got '10'"),
        (-1.0, ValueError, "std_max: expected a positive number or None, got -1.0"),
        ([10.0], TypeError, r"std_max: expected a positive number or None, got \[10.0\]"),
    ):
        with pytest.raises(error, match=message):
            UDML(encoders, CLASSES, std_max=limit, width=WIDTH)


@pytest.mark.parametrize("fusion", HEADS)
def test_weights_for_each_location_and_missing_modalities(fusion):
    encoders = {name: nn.Sequential(trunk(2)) for name in ("audio", "visual")}
    model = UDML(encoders, CLASSES, fusion, preset="authors", task="segmentation", width=WIDTH)
    inputs = {name: torch.randn(4, 2, 8, 6) for name in encoders}
    present = torch.tensor([[1, 1], [0, 1], [1, 0], [0, 0]]).bool()
    for name, here in zip(inputs, present.unbind(1), strict=True):
        inputs[name][~here] = torch.nan
    output = model(inputs, sigma=torch.ones(4, 2), present=present, seed=torch.tensor([1]))
    assert output.logits.shape == (4, CLASSES, 8, 6) and output.weights.shape == (4, 2, 4, 3)
    sums = present.sum(1).reshape(-1, 1, 1).expand(4, 4, 3).float()
    torch.testing.assert_close(output.weights.sum(1), sums)
    assert torch.equal(output.weights > 0, present[..., None, None].expand(4, 2, 4, 3))
    sum(model.loss(output, torch.randint(CLASSES, (4, 8, 6))).values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
