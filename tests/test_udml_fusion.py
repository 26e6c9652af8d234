"""The fusion heads against the same heads written naively: one forward pass a modality, the others zeroed."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from udml.fusion import FUSIONS, make_fusion
from udml.layers import UncertaintyWeighting

BATCH, CLASSES, HIDDEN, HEADS = 5, 3, 8, 2
LAYERS = {0: nn.Linear, 2: nn.Conv2d}
SPATIAL = {0: (), 2: (3, 2)}
OPTIONS = {"gated": {"hidden": HIDDEN}, "film": {"hidden": HIDDEN}, "attention": {"hidden": HIDDEN, "heads": HEADS}}


def widths_of(modalities):
    return [3 + m % 3 for m in range(modalities)]


def over(factor, x):
    """(B,) or (B, *spatial) factors times x (B, C, *spatial)."""
    factor = factor.unsqueeze(1)
    return x * factor.reshape(*factor.shape, *[1] * (x.dim() - factor.dim()))


class Naive(nn.Module):
    """`keep` lists the modalities that the head has at all; features of one that is zeroed are zeros."""

    def __init__(self, widths, spatial_dims):
        super().__init__()
        size = (1,) if spatial_dims else ()
        self.widths = widths
        self.layer = lambda i, o, bias=True: LAYERS[spatial_dims](i, o, *size, bias=bias)

    def forward(self, features, factors, keep):
        return self.head([over(factors[:, m], x) for m, x in enumerate(features)], keep)

    def columns(self, weight, keep):
        return torch.cat([part for m, part in enumerate(weight.split(self.widths, 1)) if m in keep], 1)

    def apply_columns(self, layer, features, keep):
        x = torch.cat([features[m] for m in keep], 1)
        weight, bias = self.columns(layer.weight, keep).flatten(1), layer.bias
        return torch.einsum("bc...,kc->bk...", x, weight) + bias.reshape(-1, *[1] * (x.dim() - 2))


class NaiveConcat(Naive):
    def __init__(self, widths, spatial_dims):
        super().__init__(widths, spatial_dims)
        self.linear = self.layer(sum(widths), CLASSES)

    def twin_state(self):
        return self.linear.state_dict()

    def head(self, features, keep):
        return self.apply_columns(self.linear, features, keep)


class NaiveSum(Naive):
    def __init__(self, widths, spatial_dims):
        super().__init__(widths, spatial_dims)
        self.heads = nn.ModuleList(self.layer(width, CLASSES) for width in widths)

    def head(self, features, keep):
        return sum(self.heads[m](features[m]) for m in keep)


class NaiveGated(Naive):
    def __init__(self, widths, spatial_dims):
        super().__init__(widths, spatial_dims)
        self.hidden = nn.ModuleList(self.layer(width, HIDDEN, False) for width in widths)
        self.gate = self.layer(sum(widths), len(widths) * HIDDEN)
        self.out = self.layer(HIDDEN, CLASSES)

    def head(self, features, keep):
        gates = self.apply_columns(self.gate, features, keep).sigmoid().split(HIDDEN, 1)
        return self.out(sum(gates[m] * self.hidden[m](features[m]).tanh() for m in keep))


class NaiveFiLM(Naive):
    def __init__(self, widths, spatial_dims):
        super().__init__(widths, spatial_dims)
        self.maps = nn.ModuleList(self.layer(width, 3 * HIDDEN, False) for width in widths)
        self.out = self.layer(HIDDEN, CLASSES)

    def head(self, features, keep):
        hidden, scale, shift = zip(*(self.maps[m](features[m]).chunk(3, 1) for m in keep), strict=True)
        mixed = 0
        for i in range(len(keep)):
            others = sum((scale[j] for j in range(len(keep)) if j != i), torch.zeros_like(scale[i]))
            mixed = mixed + hidden[i] * (1 + others) + shift[i]
        return self.out(mixed)


class NaiveAttention(Naive):
    def __init__(self, widths, spatial_dims):
        super().__init__(widths, spatial_dims)
        self.maps = nn.ModuleList(self.layer(width, 2 * HIDDEN) for width in widths)
        self.query = nn.Parameter(torch.randn(HIDDEN))
        self.out = self.layer(HIDDEN, CLASSES)

    def forward(self, features, factors, keep):
        outs = []
        for h in range(HEADS):
            rows = slice(h * HIDDEN // HEADS, (h + 1) * HIDDEN // HEADS)
            attention, values = [], []
            for m in keep:
                key, value = self.maps[m](features[m]).chunk(2, 1)
                score = torch.einsum("d,bd...->b...", self.query[rows], key[:, rows]) / (HIDDEN // HEADS) ** 0.5
                factor = factors[:, m]
                attention.append(factor.reshape(*factor.shape, *[1] * (score.dim() - factor.dim())) * score.exp())
                values.append(value[:, rows])
            outs.append(sum(over(a / sum(attention), v) for a, v in zip(attention, values, strict=True)))
        return self.out(torch.cat(outs, 1))


NAIVE = dict(zip(FUSIONS, (NaiveConcat, NaiveSum, NaiveGated, NaiveFiLM, NaiveAttention), strict=True))


def pair(name, modalities, spatial_dims=0, dtype=torch.float64):
    """A fusion head and its naive twin, with the twin's parameters, and features."""
    torch.manual_seed(modalities)
    widths = widths_of(modalities)
    naive = NAIVE[name](widths, spatial_dims).to(dtype)
    fusion = make_fusion(name, widths, CLASSES, spatial_dims=spatial_dims, **OPTIONS.get(name, {})).to(dtype)
    fusion.load_state_dict(naive.twin_state() if name == "concat" else naive.state_dict())
    return fusion, naive, [torch.randn(BATCH, w, *SPATIAL[spatial_dims], dtype=dtype) for w in widths]


def weigher(modalities, dtype=torch.float64, locations=(), mask=None, residual=False):
    weighting = UncertaintyWeighting(floor=0.5, residual=residual)
    noise = 3 * torch.rand(BATCH, modalities, *locations, dtype=dtype)
    return partial(weighting, noise=noise, dependency=1 + torch.rand(modalities, dtype=dtype), mask=mask)


def unimodal_naive(name, naive, features):
    """Each modality in a pass of its own; attention sees the others as missing, not as tokens of zeros."""
    everything = list(range(len(features)))
    ones = features[0].new_ones(BATCH, len(features))
    passes = []
    for m in everything:
        alone = [x if j == m else torch.zeros_like(x) for j, x in enumerate(features)]
        passes.append(naive(alone, ones, [m] if name == "attention" else everything))
    return torch.stack(passes)


def gradients(logits, unimodal, features, module):
    """Of a loss that tells all the logits apart."""
    wanted = [*features, *module.parameters()]
    loss = sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum() for y in (logits, unimodal))
    return torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("spatial_dims", [0, 2])
@pytest.mark.parametrize("modalities", [2, 3, 16])
@pytest.mark.parametrize("name", FUSIONS)
def test_logits_and_gradients_of_the_naive_head(name, modalities, spatial_dims, residual):
    fusion, naive, features = pair(name, modalities, spatial_dims)
    for x in features:
        x.requires_grad_()
    weigh = weigher(modalities, locations=SPATIAL[spatial_dims], residual=residual)
    out = fusion(features, weigh)
    inverse = 1 / (
        (weigh.keywords["noise"] ** 2 + 0.25) * weigh.keywords["dependency"].reshape(1, -1, *[1] * spatial_dims)
    )
    weights = modalities * inverse / inverse.sum(1, keepdim=True)
    torch.testing.assert_close(out.weights, weights)
    fused = naive(features, weights + residual, list(range(modalities)))
    unimodal = unimodal_naive(name, naive, features)
    torch.testing.assert_close(out.logits, fused)
    torch.testing.assert_close(out.unimodal, unimodal)
    got, expected = gradients(*out[:2], features, fusion), gradients(fused, unimodal, features, naive)
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("spatial_dims", [0, 2])
@pytest.mark.parametrize("name", FUSIONS)
def test_a_missing_modality_leaves_the_head_without_it(name, spatial_dims, residual):
    """Row b misses modality b, row 3 two of them, row 4 all; what is missing holds NaN."""
    fusion, naive, features = pair(name, 3, spatial_dims)
    present = torch.tensor([[0, 1, 1], [1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    zeroed = []
    for m, x in enumerate(features):
        x[~present[:, m]] = torch.nan
        here = present[:, m].reshape(-1, *[1] * (x.dim() - 1))
        zeroed.append(torch.where(here, x.requires_grad_(), 0))
    out = fusion(zeroed, weigher(3, mask=present, residual=residual), present)
    assert bool((out.weights[~present] == 0).all())
    for row in range(BATCH - 1):
        keep = present[row].nonzero().flatten().tolist()
        alone = [x[row : row + 1] for x in zeroed]
        torch.testing.assert_close(out.logits[row : row + 1], naive(alone, out.weights[row : row + 1] + residual, keep))
        for m in keep:
            others = [x if j == m else torch.zeros_like(x) for j, x in enumerate(alone)]
            expected = naive(others, torch.ones_like(out.weights[:1]), [m] if name == "attention" else keep)
            torch.testing.assert_close(out.unimodal[m, row : row + 1], expected)
    bias = {"concat": lambda: fusion.bias, "sum": lambda: torch.zeros_like(naive.heads[0].bias)}
    nothing = bias.get(name, lambda: fusion.out.bias)()
    torch.testing.assert_close(out.logits[-1], nothing.reshape(-1, *[1] * spatial_dims).expand_as(out.logits[-1]))
    assert all(bool(y.isfinite().all()) for y in out)
    grads = gradients(*out[:2], features, fusion)
    assert all(bool(g.isfinite().all()) for g in grads)
    for x, g in zip(features, grads[:3], strict=True):
        assert bool((g[x.isnan()] == 0).all())
        assert bool((g[~x.isnan()] != 0).all())


@pytest.mark.parametrize("name", FUSIONS)
def test_a_missing_modality_is_no_part_of_unweighted_fusion(name):
    fusion, naive, features = pair(name, 3)
    present = torch.tensor([[1, 0, 1]] * BATCH, dtype=torch.bool)
    features[1].zero_()
    out = fusion(features, present=present)
    torch.testing.assert_close(out.weights, present.to(out.weights.dtype))
    torch.testing.assert_close(out.logits, naive(features, out.weights, [0, 2]))


@pytest.mark.parametrize("spatial_dims", [0, 2])
@pytest.mark.parametrize("modalities", [2, 16])
@pytest.mark.parametrize("name", FUSIONS)
def test_no_product_is_made_twice(name, modalities, spatial_dims):
    """The count of the forward pass is that of every layer applied once; of `out` once a modality and once fused."""
    fusion, _, features = pair(name, modalities, spatial_dims)
    rows = BATCH * torch.Size(SPATIAL[spatial_dims]).numel()
    channels = sum(fusion.widths)
    per_channel = {"concat": CLASSES, "sum": CLASSES, "gated": (1 + modalities) * HIDDEN, "film": 3 * HIDDEN}
    expected = 2 * rows * channels * per_channel.get(name, 2 * HIDDEN)
    if name not in ("concat", "sum"):
        expected += 2 * rows * HIDDEN * CLASSES * (modalities + 1)
    weigh = weigher(modalities, locations=SPATIAL[spatial_dims])
    with FlopCounterMode(display=False) as counter:
        fusion(features, weigh)
    assert counter.get_total_flops() == expected
    if name == "concat":
        layer = LAYERS[spatial_dims](channels, CLASSES, *[1] * bool(spatial_dims)).double()
        with FlopCounterMode(display=False) as one:
            layer(torch.cat(features, 1))
        assert counter.get_total_flops() == one.get_total_flops()


@pytest.mark.parametrize("name", FUSIONS)
def test_compiles_to_one_graph(name):
    fusion, _, features = pair(name, 3, dtype=torch.float32)
    present = torch.ones(BATCH, 3, dtype=torch.bool)
    present[0, 1] = False
    weigh = weigher(3, torch.float32, mask=present)
    compiled = torch.compile(fusion, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(features, weigh, present), fusion(features, weigh, present), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("spatial_dims", [0, 2])
@pytest.mark.parametrize("name", FUSIONS)
def test_bfloat16_autocast(name, spatial_dims):
    fusion, _, features = pair(name, 3, spatial_dims, torch.float32)
    weigh = weigher(3, torch.float32)
    expected = fusion(features, weigh)
    with torch.autocast("cpu", torch.bfloat16):
        out = fusion(features, weigh)
    torch.testing.assert_close(out.weights, expected.weights)
    for got, exact in zip(out[:2], expected[:2], strict=True):
        error = (got.float() - exact).abs().max() / exact.abs().max()
        assert 1e-5 < error < 3e-2, "computed in bfloat16, and right to its precision"
    (out.logits.float().sum() + out.unimodal.float().sum()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in fusion.parameters() if p.grad is not None)


def test_attention_starts_as_the_weighted_mean():
    fusion = make_fusion("attention", [4, 6], CLASSES, hidden=HIDDEN, heads=HEADS)
    features = [torch.randn(BATCH, 4), torch.randn(BATCH, 6)]
    out = fusion(features, weigher(2, torch.float32))
    values = [layer(x)[:, HIDDEN:] for layer, x in zip(fusion.maps, features, strict=True)]
    mean = sum(out.weights[:, m : m + 1] * v for m, v in enumerate(values)) / 2
    torch.testing.assert_close(out.logits, fusion.out(mean))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="fusion: expected one of concat, sum, gated, film, attention, got 'bilinear'"):
        make_fusion("bilinear", [4, 4], CLASSES)
    with pytest.raises(ValueError, match="widths: expected 1 to 16 positive numbers"):
        make_fusion("sum", [4] * 17, CLASSES)
    with pytest.raises(ValueError, match="num_classes: expected a positive number, got 0"):
        make_fusion("sum", [4], 0)
    with pytest.raises(ValueError, match="spatial_dims: expected one of 0, 1, 2, 3, got 4"):
        make_fusion("concat", [4], CLASSES, spatial_dims=4)
    with pytest.raises(ValueError, match="hidden: expected a multiple of heads, 4, got 6"):
        make_fusion("attention", [4], CLASSES, hidden=6)
    fusion = make_fusion("concat", [4, 5], CLASSES)
    with pytest.raises(ValueError, match="features: expected 2, one a modality, got 1"):
        fusion([torch.randn(2, 4)])
    with pytest.raises(
        ValueError, match=r"features\[1\]: expected \(B, 5\) and 0 spatial dimensions, got shape \(2, 4\)"
    ):
        fusion([torch.randn(2, 4), torch.randn(2, 4)])
