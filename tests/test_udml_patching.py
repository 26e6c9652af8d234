"""Models whose modules are swapped, and back: same results, same weights, same optimizer."""

import pytest
import torch
from torch import nn
from udml.layers import ModalityDropout, ProbabilisticHead
from udml.patching import patch

from .plain_udml import (
    BATCH,
    CLASSES,
    CLOSE,
    WIDTH,
    Branch,
    Grouped,
    Plain,
    inputs,
    relu_estimator,
    same_outputs,
    sgd,
    step,
    twins,
)

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def test_training_goes_on_through_a_patch_with_the_same_optimizer():
    plain, patched = Plain(), Plain()
    patched.load_state_dict(plain.state_dict())
    optimizers = sgd(plain), sgd(patched)
    modules, names = list(patched.named_modules()), list(patched.state_dict())
    for i in range(6):
        batch = inputs()
        step(plain, optimizers[0], batch)
        if i in (2, 3):
            with patch(patched, twins()) as swapped:
                assert patched.audio.head is swapped.modules["audio.head"] and not swapped.new_parameters()
                assert list(patched.state_dict()) == names
                step(patched, optimizers[1], batch)
        else:
            step(patched, optimizers[1], batch)
        torch.testing.assert_close(patched.state_dict(), plain.state_dict(), **CLOSE)
    assert list(patched.named_modules()) == modules


def test_a_ready_module_holds_the_very_tensors():
    model, head = Plain().double(), ProbabilisticHead(4, WIDTH)
    old = model.audio.head
    old.mu[0].weight.requires_grad_(False)
    expected = {name: id(t) for name, t in [*old.named_parameters(), *old.named_buffers()]}
    x = torch.randn(BATCH, 4).double()
    mu = old.eval().mu(x)
    old.train()
    patched = patch(model, {"audio.head": head})
    assert model.audio.head is head
    assert {name: id(t) for name, t in [*head.named_parameters(), *head.named_buffers()]} == expected
    torch.testing.assert_close(head.eval()(x)[0], mu)
    head.train()(x)
    moved = head.mu[1].running_mean.clone()
    patched.undo()
    assert model.audio.head is old and torch.equal(old.mu[1].running_mean, moved)
    assert int(old.mu[1].num_batches_tracked) == 1
    patched.undo()
    assert model.audio.head is old


def test_exceptions_inside_put_the_modules_back():
    model = Plain()
    old = model.audio.head
    with pytest.raises(KeyError), patch(model, {"audio.head": same_outputs()}):
        with torch.no_grad():
            model.audio.head.mu[0].bias.fill_(7)
        raise KeyError("inside")
    assert model.audio.head is old and bool((old.mu[0].bias == 7).all())


def test_modules_go_back_as_they_are_converted_inside():
    model, other = Plain(), Grouped()
    with pytest.warns(UserWarning, match="estimators"), patch(other, {"estimators": relu_estimator()}):
        other.double()
    with patch(model, {"audio.head": ProbabilisticHead(4, WIDTH), "visual.head": same_outputs()}):
        model.double()
    for tensor in (*model.state_dict().values(), *other.state_dict().values()):
        assert tensor.dtype in (torch.float64, torch.int64)
    model(*(x.double() for x in inputs()))


def test_a_module_in_several_places_is_swapped_in_all():
    model = Plain()
    model.visual.head = model.audio.head
    model.again = nn.ModuleList([model.audio.head])
    old = model.audio.head
    with patch(model, {"visual.head": same_outputs()}):
        assert model.visual.head is model.audio.head is model.again[0] is not old
    assert model.visual.head is model.audio.head is model.again[0] is old


def test_patches_come_off_in_reverse():
    model = Plain()
    first, old = patch(model, {"classifier": nn.Linear(2 * WIDTH, CLASSES)}), model.audio.head
    second = patch(model, {"classifier": nn.Linear(2 * WIDTH, CLASSES), "audio.head": same_outputs()})
    with pytest.raises(RuntimeError, match="classifier: expected the patch's module in its place, got Linear"):
        first.undo()
    assert model.classifier is second.modules["classifier"]
    second.undo()
    first.undo()
    assert model.audio.head is old and type(model.classifier) is nn.Linear
    third = patch(model, {"classifier": nn.Linear(2 * WIDTH, CLASSES)})
    model.classifier.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"classifier: .* no more bias"):
        third.undo()


def test_modes_are_taken_over_and_brought_back():
    model = Plain()
    old = model.audio.head
    old.mu[1].eval()
    with patch(model, {"audio.head": ProbabilisticHead(4, WIDTH).eval()}):
        head = model.audio.head
        assert [m.training for m in (head, head.mu, head.mu[1], head.logvar[1])] == [True, True, False, True]
        head.logvar[1].eval()
    assert [m.training for m in (old, old.mu[1], old.logvar[1])] == [True, False, False]
    with patch(model.eval(), twins()):
        assert not any(m.training for m in model.modules())
        model.train()
    assert all(m.training for m in model.modules())


@pytest.mark.filterwarnings("ignore:estimators")
def test_modes_of_modules_that_the_new_one_lacks():
    model = Grouped()
    net = model.estimators[0]
    net[1].eval()
    with patch(model, {"estimators": relu_estimator()}):
        pass
    assert [m.training for m in (net, net[0], net[1])] == [True, True, False]
    with patch(model, {"estimators": relu_estimator()}):
        model.eval()
    assert not any(m.training for m in model.modules())


def test_settings_of_the_new_module_are_its_own():
    model = nn.Sequential(ModalityDropout(0.5))
    with patch(model, {"0": ModalityDropout(0.25)}):
        assert model[0].p == 0.25
    assert model[0].p == 0.5


def test_hooks_of_the_swapped_module_go_with_it():
    model, seen = Plain(), []
    old = model.classifier
    removed = old.register_forward_hook(lambda module, args, out: seen.append(("removed", module)))
    old.register_full_backward_hook(lambda module, *gradients: seen.append(("backward", module)))
    with patch(model, {"classifier": nn.Linear(2 * WIDTH, CLASSES)}):
        new = model.classifier
        removed.remove()
        new.register_forward_pre_hook(lambda module, args: seen.append(("pre", module)))
        model(*inputs()).sum().backward()
    assert seen == [("pre", new), ("backward", new)]
    model(*inputs()).sum().backward()
    assert seen[2:] == [("pre", old), ("backward", old)]
    new(torch.randn(BATCH, 2 * WIDTH))
    assert len(seen) == 4, "the new module is free of them again"
    with patch(model, {"audio": Branch()}):
        model.audio.register_full_backward_hook(lambda module, *gradients: seen.append(("late", module)))
    model(*(x.requires_grad_() for x in inputs())).sum().backward()
    # One that is not full would ask for a single tensor, with a warning.
    assert ("late", model.audio) in seen and model.audio._is_full_backward_hook


def test_tied_parameters_stay_tied():
    model = Plain()
    model.visual.head.mu[0].weight = model.audio.head.mu[0].weight
    with patch(model, {"audio.head": ProbabilisticHead(4, WIDTH)}):
        assert model.visual.head.mu[0].weight is model.audio.head.mu[0].weight


def grouped(frozen=False):
    model = Grouped().double()
    model.requires_grad_(not frozen)
    old = model.estimators
    with pytest.warns(UserWarning, match=r"estimators: 0\.0\.weight, .* optimizer made before lacks") as caught:
        patched = patch(model, {"estimators": relu_estimator()})
    assert caught[0].filename == __file__
    return model, old, patched


def test_other_shapes_are_copied_and_copied_back():
    model, old, patched = grouped()
    x = torch.randn(BATCH, WIDTH).double()
    torch.testing.assert_close(
        model(x), torch.cat([(net(s) / 2).exp() for net, s in zip(old, (x, 2 * x), strict=True)], 1)
    )
    optimizer = torch.optim.SGD(patched.new_parameters(), lr=0.1)
    step(model, optimizer, [x])
    trained = model(x)
    patched.undo()
    assert model.estimators is old
    torch.testing.assert_close(model(x), trained)
    assert all(not p.requires_grad for p in grouped(frozen=True)[2].new_parameters())


def test_a_function_may_wrap_the_old_module():
    class Half(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) / 2

    model, batch = Plain().eval(), inputs()
    expected, old = model(*batch), model.classifier
    with patch(model, {"classifier": Half}):
        torch.testing.assert_close(model(*batch), expected / 2)
        model.double()
    assert model.classifier is old and old.weight.dtype == torch.float64
