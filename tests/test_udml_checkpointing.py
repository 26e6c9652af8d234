"""torch.utils.checkpoint repeats a forward pass in backward; what a forward pass moves must move once."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from udml.encoders import MLPEncoder
from udml.layers import InputGuard, ModalityDependency, SyncBatchNorm
from udml.models import METHODS, UDML, build_model

BATCH, WIDTH, CLASSES = 6, 8, 5


pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def gradient(function, x, reentrant: bool | None):
    """Of function(x), checkpointed unless `reentrant` is None."""
    x = x.clone().requires_grad_()
    (function(x) if reentrant is None else checkpoint(function, x, use_reentrant=reentrant)).backward()
    return x.grad


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_dependency_moves_once(reentrant, per_sample):
    layers = [ModalityDependency(2, 0.5, per_sample=per_sample) for _ in range(2)]
    for scale in (1.0, 3.0):
        logits = scale * torch.randn(2, BATCH, CLASSES)
        found = []
        for layer, kind in zip(layers, (None, reentrant), strict=True):
            # The gradient needs alpha once more.
            found.append(
                gradient(lambda x, a=layer: (x.exp().sum((1, 2)) * a(x).reshape(-1, 2).sum(0)).sum(), logits, kind)
            )
        assert torch.equal(*found)
    assert (layers[1].batches == 2).all()
    torch.testing.assert_close(layers[1].state_dict(), layers[0].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [lambda: SyncBatchNorm(3), lambda: InputGuard(1)], ids=["SyncBatchNorm", "InputGuard"])
def test_other_layers_move_once(make, reentrant):
    plain, repeated = make(), make()
    for scale in (1.0, 3.0):
        x = scale * torch.randn(BATCH, 3)
        for layer, kind in ((plain, None), (repeated, reentrant)):
            gradient(lambda x, a=layer: (a([x]) * x if isinstance(a, InputGuard) else a(x)).square().sum(), x, kind)
    torch.testing.assert_close(repeated.state_dict(), plain.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "authors"])
def test_a_models_buffers_move_once(method, reentrant):
    """Those of nn.BatchNorm in its encoders and heads too, where the whole forward pass is repeated."""
    results = []
    for kind in (None, reentrant):
        torch.manual_seed(1)
        encoders = {name: MLPEncoder(5, WIDTH) for name in ("a", "b")}
        options = {"preset": "authors"} if method == "authors" else {}
        model = build_model("udml" if options else method, encoders, CLASSES, **options)
        for step in range(2):
            x, sigma, target = torch.randn(BATCH, 2, 5), torch.rand(BATCH, 2), torch.randint(CLASSES, (BATCH,))

            def loss(x, model=model, **given):
                output = model(dict(zip(model.modalities, x.unbind(1), strict=True)), **given)
                return sum(model.loss(output, target).values())  # noqa: B023

            gradient(partial(loss, sigma=sigma, seed=torch.tensor([step])), x, kind)
        results.append((dict(model.named_buffers()), {n: p.grad for n, p in model.named_parameters()}))
    (plain, expected), (repeated, found) = results
    torch.testing.assert_close(repeated, plain, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_second_step_and_evaluation_are_no_recomputation():
    model = UDML({name: nn.Linear(5, WIDTH) for name in ("a", "b")}, CLASSES)
    inputs = {name: torch.randn(BATCH, 5) for name in ("a", "b")}
    for step in range(1, 3):
        model(inputs, seed=torch.tensor([step])).logits.sum().backward()
        assert (model.dependency.batches == step).all()
    model.eval()(inputs)
    assert (model.dependency.batches == 2).all()
