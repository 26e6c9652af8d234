"""What tells a broken sensor, and layers that keep their statistics from one."""

import pytest
import torch
from torch import Tensor
from udml.layers import InputGuard, ModalityDependency, SyncBatchNorm

BATCH, FEATURES, WIDTH, CLASSES = 16, 6, 8, 5
NAN, INF = float("nan"), float("inf")


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def guard_of(x: Tensor, limit: float = 6.0) -> InputGuard:
    """One that has seen a batch."""
    guard = InputGuard(1, limit)
    guard([x])
    return guard.eval()


def test_the_guards_statistics():
    """Medians of the log root mean square and of its deviations, as running means."""
    guard, expected = InputGuard(2, momentum=0.75), None
    for _ in range(3):
        inputs = [torch.randn(BATCH + 1, 3, 4), torch.randn(BATCH + 1, 7) * torch.rand(BATCH + 1, 1).exp()]
        guard(inputs)
        sizes = torch.stack([x.flatten(1).square().mean(1).sqrt().log() for x in inputs])
        center = sizes.median(1).values
        batch = torch.stack((center, (sizes - center.unsqueeze(1)).abs().median(1).values))
        expected = batch if expected is None else 0.75 * expected + 0.25 * batch
        # To a bin of the histogram.
        torch.testing.assert_close(torch.stack((guard.center, guard.spread)), expected, rtol=0, atol=1 / 16)
    assert guard.batches.tolist() == [3, 3]


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_the_guards_limit(spread):
    sizes = torch.cat((-spread * torch.ones(5), torch.zeros(1), spread * torch.ones(5))).exp()
    guard = guard_of(sizes.reshape(-1, 1, 1) * torch.tensor([1.0, -1.0]))
    highest = 6.0 if spread == 0 else torch.tensor(5.0 * spread).exp().item()
    guard, x = _with_another(guard), highest * torch.tensor([[0.9, -0.9], [1.4, -1.4]])
    assert guard([x, torch.ones(2, 1)])[:, 0].tolist() == [True, False]


def _with_another(guard: InputGuard) -> InputGuard:
    wider = InputGuard(2, guard.limit)
    wider.load_state_dict({name: torch.cat((value, value)) for name, value in guard.state_dict().items()})
    return wider.eval()


def test_half_of_the_training_samples_may_be_broken():
    x = torch.randn(2 * BATCH + 1, FEATURES)
    x[:BATCH] *= 1e6
    guard = InputGuard(2)
    assert torch.equal(guard([x, torch.ones(len(x), 1)])[:, 0], torch.arange(len(x)) >= BATCH)


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 3, 5, 2), (4, 1, 5)])
def test_a_signal_is_stuck_where_each_channel_is(shape):
    guard, x = InputGuard(2).eval(), torch.randn(shape)
    x[1] = x[1, :, :1] if len(shape) == 3 else x[1, :, :1, :1]
    x[2, 0] = 0.5
    assert guard([x, torch.ones(4, 1)])[:, 0].tolist() == [True, False, shape[1] > 1, True]
    # One element a channel, or one in all, is not stuck; integers never are.
    for whole in (torch.ones(4, 3, 1), torch.ones(4, 1), torch.ones(4), torch.ones(4, 5, dtype=torch.int64)):
        stuck = whole.is_floating_point() and whole.dim() == 3
        assert guard([whole, torch.ones(4, 1)])[:, 0].tolist() == [not stuck] * 4


def test_the_last_modality_is_kept_if_it_is_finite():
    guard = _with_another(guard_of(torch.randn(50, FEATURES)))
    x = torch.randn(4, FEATURES)
    x[1:] *= 1e3
    y = x.clone()
    y[2] = NAN
    found = guard([x, y], torch.tensor([[1, 1], [1, 1], [1, 1], [0, 1]]).bool())
    assert found.tolist() == [[True, True], [True, True], [True, False], [False, True]]


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("per_sample", [False, True])
def test_dependency_rests_in_a_batch_that_is_not_finite(value, per_sample):
    layer = ModalityDependency(2, per_sample=per_sample)
    logits = torch.randn(2, BATCH, CLASSES)
    layer(logits)
    before = layer.alpha.clone()
    logits[0, 3, 1] = value
    alpha = layer(logits)
    assert layer.alpha[0] == before[0] and layer.alpha[1] != 1 and alpha.isfinite().all()
    assert layer.batches.tolist() == [1, 2]


@pytest.mark.parametrize("value", [NAN, INF])
def test_synced_batch_norm_rests_in_a_batch_that_is_not_finite(value):
    norm, x = SyncBatchNorm(3), torch.randn(BATCH, 3)
    norm(x)
    before = norm.running_mean.clone(), norm.running_var.clone()
    x[2, 1] = value
    norm(x + 1)
    for old, new in zip(before, (norm.running_mean, norm.running_var), strict=True):
        assert (old == new).tolist() == [False, True, False]
