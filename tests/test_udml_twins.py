"""Twins against the plain modules that they are made of."""

from functools import partial

import pytest
import torch
from torch import nn
from udml.fusion import ConcatFusion
from udml.layers import ProbabilisticHead
from udml.patching import concat_fusion, noise_estimator, patch, probabilistic_head

from .plain_udml import BATCH, CLASSES, CLOSE, HIDDEN, WIDTH, Plain, twins

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


@pytest.mark.parametrize("spatial", [(), (3, 2)])
def test_head_twin(spatial):
    layer = partial(nn.Conv2d, kernel_size=1) if spatial else nn.Linear
    plain = nn.ModuleDict({"fc_mu": layer(4, WIDTH), "fc_var": layer(4, WIDTH), "drop": nn.Dropout()})
    x, seed = torch.randn(BATCH, 4, *spatial), torch.tensor([3])
    outputs = ("logvar", "z", "std", "pooled_std", "kl", "mu")
    twin = probabilistic_head(plain, mu="fc_mu", logvar="fc_var", outputs=outputs, std_max=1.1)
    logvar, z, std, pooled, kl, mu = twin(x, 0.5, seed=seed)
    torch.testing.assert_close((mu, logvar), (plain["fc_mu"](x), plain["fc_var"](x)))
    torch.testing.assert_close(std, (logvar / 2).exp().clamp(max=1.1))
    assert bool((std == std.amax()).sum() > 1) and pooled.shape == (BATCH, WIDTH)
    ready = ProbabilisticHead(4, WIDTH, spatial_dims=len(spatial), batch_norm=False, std_max=1.1)
    names = {"fc_mu": "mu", "fc_var": "logvar"}
    ready.load_state_dict({names[k.split(".")[0]] + "." + k.split(".")[1]: v for k, v in plain.state_dict().items()})
    torch.testing.assert_close((z, pooled, kl), ready(x, 0.5, seed=seed))
    single = probabilistic_head(plain, mu="fc_mu", logvar="fc_var", outputs="z").eval()
    torch.testing.assert_close(single(x), mu)


ACTIVATIONS = [None, nn.ReLU(), nn.GELU(), nn.SiLU()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_estimator_twin(activation, dtype):
    middle = [m for m in (activation, nn.Dropout(0.5)) if m]
    plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), *middle, nn.Linear(HIDDEN, 2)).to(dtype).eval()
    twin, std = noise_estimator(plain).eval(), torch.rand(BATCH, 4, WIDTH, dtype=dtype)
    results = []
    for net in (plain, twin):
        x = std.clone().requires_grad_()
        plain.zero_grad()
        o = net(x)
        o.sin().sum().backward()
        results.append([o, x.grad, *(p.grad.clone() for p in plain.parameters())])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else CLOSE
    for got, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, expected, **tolerance)


def test_dropout_of_the_estimator_twin():
    plain = nn.Sequential(nn.Linear(WIDTH, 4000), nn.Dropout(0.25), nn.Linear(4000, 1))
    plain[2].weight.data.fill_(1 / 4000)
    plain[0].weight.data.zero_()
    plain[0].bias.data.fill_(1)
    twin, std, seed = noise_estimator(plain), torch.rand(BATCH, WIDTH), torch.tensor([3])
    o = twin(std, seed=seed) - plain[2].bias
    # Means of 4000 draws of 0 or 4/3, whose standard deviation is sqrt(1/3 / 4000) = 0.009.
    assert bool(((o - 1).abs() < 0.05).all()) and bool(((o - 1).abs() > 1e-4).any())
    torch.testing.assert_close(twin(std, seed=seed), twin(std, seed=seed))
    plain[1].eval()
    torch.testing.assert_close(twin(std), plain(std), **CLOSE)


def test_estimator_twin_in_half_precision_keeps_small_noise():
    plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 1)).half()
    plain[1].bias.data.fill_(-25)
    std = torch.rand(BATCH, WIDTH).half()
    torch.testing.assert_close(noise_estimator(plain)(std), plain(std), rtol=2e-3, atol=0)


def test_estimator_twin_far_below_its_range_is_finite():
    plain = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, 1))
    plain[1].bias.data.fill_(-400)
    o = noise_estimator(plain)(torch.rand(BATCH, WIDTH))
    (o / 2).exp().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in plain.parameters()) and bool((o < -170).all())


@pytest.mark.parametrize("spatial", [(), (3, 2)])
def test_concat_twin(spatial):
    layer = nn.Conv2d(7, CLASSES, 1) if spatial else nn.Linear(7, CLASSES)
    state = torch.get_rng_state()
    twin = concat_fusion(layer, [4, 3])
    assert torch.equal(torch.get_rng_state(), state) and twin.weight is layer.weight and twin.bias is layer.bias
    a, v = torch.randn(BATCH, 4, *spatial), torch.randn(BATCH, 3, *spatial)
    torch.testing.assert_close(twin(torch.cat((a, v), 1)), layer(torch.cat((a, v), 1)))
    output = twin([a, v])
    torch.testing.assert_close(output.logits, layer(torch.cat((a, v), 1)))
    padded = [layer(torch.cat(pair, 1)) for pair in ((a, 0 * v), (0 * a, v))]
    torch.testing.assert_close(twin.unimodal(twin.parts([a, v])), torch.stack(padded))
    assert isinstance(twin, ConcatFusion) and isinstance(patch(Plain(), twins()).modules["classifier"], ConcatFusion)


def test_twins_name_what_they_cannot_be_made_of():
    linear, drop = nn.Linear(2, 2), nn.Dropout(0.1)
    pair = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("mu", "logvar", "proj")})
    cases = {
        "mu, logvar: expected two of mu, logvar, proj, got var": lambda: probabilistic_head(pair, logvar="var"),
        "head: expected parameters in mu and logvar alone, got proj.weight": lambda: probabilistic_head(pair),
        "net: expected Sequential.* got Linear": lambda: noise_estimator(linear),
        "got Sequential.*Tanh": lambda: noise_estimator(nn.Sequential(linear, nn.Tanh(), linear)),
        "got Sequential.*Dropout.*GELU": lambda: noise_estimator(nn.Sequential(linear, drop, nn.GELU(), linear)),
        "approximate": lambda: noise_estimator(nn.Sequential(linear, nn.GELU("tanh"), linear)),
        "bias=False": lambda: noise_estimator(nn.Sequential(linear, nn.Linear(2, 1, bias=False))),
        "layer: expected Linear or a 1x1.*kernel_size": lambda: concat_fusion(nn.Conv2d(2, 2, 3), [1, 1]),
        "layer: .*padding": lambda: concat_fusion(nn.Conv2d(2, 2, 1, padding=1), [1, 1]),
        "layer: .*bias=False": lambda: concat_fusion(nn.Linear(2, 2, bias=False), [1, 1]),
        r"widths: expected a sum of 2, .*got \[1, 2\]": lambda: concat_fusion(linear, [1, 2]),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    del pair["proj"]
    with pytest.raises(ValueError, match=r"outputs: expected some of z, mu, .* got sigma"):
        probabilistic_head(pair, outputs=("z", "sigma"))
