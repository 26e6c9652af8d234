"""A training step. Needs the train extra."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from udml.data import MultimodalData
from udml.models import METHODS, build_model
from udml.schedule import PHASES
from udml.training import train
from udml.training.module import TrainingModule, idle_biases
from udml.training.randomness import step_seeds

import udml_kernels

from .udml_runs import TINY, make_data, make_scenes

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_data()


FETCHES = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)


class NoFetch(TorchDispatchMode):
    """Fails where a value leaves the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in FETCHES, "a value was fetched"
        return function(*args, **kwargs or {})


@pytest.fixture
def no_fetch(monkeypatch) -> NoFetch:
    # As on an accelerator, where the ops' argument checks read no values.
    monkeypatch.setattr(udml_kernels.checks, "readable", lambda value: None)
    return NoFetch()


SEEDS = step_seeds(0, 0, 4)


def make_module(data, method: str) -> TrainingModule:
    model = build_model(method, data.encoders(8), len(data.spec.classes), task=data.spec.task)
    return TrainingModule(model, data.spec, TINY)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_fetched_in_a_step(data, method, no_fetch):
    module, batch = make_module(data, method), data.train.batch.select(range(16))
    (optimizer,), _ = module.configure_optimizers()
    with no_fetch:
        for step in range(2):
            module.objective(batch, PHASES[2], SEEDS[step : step + 1])[0].backward()
            module.on_after_backward()
            module.configure_gradient_clipping(optimizer)


def test_nothing_is_fetched_in_a_step_of_segmentation(no_fetch):
    scenes = make_scenes()
    module, batch = make_module(scenes, "udml"), scenes.train.batch.select(range(4))
    with no_fetch:
        module.objective(batch, PHASES[2], SEEDS[:1])[0].backward()
    with pytest.raises(AssertionError, match="fetched"), no_fetch:
        module.model.fusion.bias.sum().item()


def test_nothing_is_fetched_where_a_run_logs_its_steps(data, no_fetch):
    class Watch(Callback):
        def on_fit_start(self, trainer, module):
            step = module.training_step

            def watched(batch, batch_idx):
                with no_fetch:
                    return step(batch, batch_idx)

            module.training_step = watched

    train(replace(TINY, epochs=3), data, callbacks=[Watch()], progress=False)


def test_gradients_are_changed_then_clipped(data):
    module, batch = make_module(data, "udml"), data.train.batch.select(range(16))
    (optimizer,), _ = module.configure_optimizers()
    doubled = []

    def after_backward(output, target, *, seed):
        assert torch.equal(target, batch.target) and torch.equal(seed, SEEDS[1:2])
        doubled.append(module.model.fusion.bias.grad.mul_(2).clone())

    module.model.after_backward = after_backward
    module.objective(batch, PHASES[2], SEEDS[1:2])[0].backward()
    module.on_after_backward()
    norm = nn.utils.get_total_norm([p.grad for p in module.model.parameters() if p.grad is not None])
    module.config = replace(TINY, clip=float(norm) / 4)
    module.configure_gradient_clipping(optimizer)
    torch.testing.assert_close(module.model.fusion.bias.grad, doubled[0] / 4)


def test_biases_that_a_norm_takes_out_stay(data):
    first, idle = [], []

    class Keep(Callback):
        def on_train_start(self, trainer, module):
            idle.extend(idle_biases(module.model))
            first.extend(bias.detach().clone() for bias in idle)

    result = train(replace(TINY, epochs=3), data, callbacks=[Keep()], progress=False)
    names = {name for name, p in result.model.named_parameters() if any(p is bias for bias in idle)}
    heads = {f"heads.{m}.{part}.0.bias" for m in ("ear", "eye") for part in ("mu", "logvar")}
    assert names == heads | {"encoders.ear.0.bias", "encoders.eye.0.bias"}
    assert all(torch.equal(a, b) for a, b in zip(idle, first, strict=True))


def test_autocast_gives_the_ops_bfloat16_and_the_losses_float32(data):
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            model = module.model
            model.fusion.parts = lambda features, parts=model.fusion.parts: (
                seen.append({f.dtype for f in features}),
                parts(features),
            )[1]
            loss = model.loss

            def watched(output, target, **options):
                terms = loss(output, target, **options)
                seen.append({output.logits.dtype, output.unimodal.dtype} | {t.dtype for t in terms.values()})
                return terms

            model.loss = watched

    result = train(replace(TINY, precision="bf16-mixed", epochs=3), data, callbacks=[Look()], progress=False)
    assert {torch.bfloat16} in seen and {torch.float32} in seen and len({frozenset(s) for s in seen}) == 2
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    full = train(replace(TINY, epochs=3), data, progress=False)
    assert result.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=2e-2)
    assert result.history[0]["loss"] != full.history[0]["loss"]


def test_sgd_trains_parameters_that_get_their_first_gradient_in_a_later_phase(data):
    best = train(replace(TINY, optimizer="sgd"), data, progress=False).best
    assert not torch.equal(best["clean"]["estimator.weight1"], best["weighted"]["estimator.weight1"])


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss: expected a finite number.*learning_rate"):
        train(replace(TINY, learning_rate=1e30, optimizer="sgd", out=tmp_path), data, progress=False)


def test_a_compiled_step_computes_the_same(data):
    """The loss, what is measured, and the gradients of a step in the weighted phase."""
    batch, found = data.train.batch.select(range(16)), []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = build_model("udml", data.encoders(8), len(data.spec.classes))
        module = TrainingModule(model, data.spec, replace(TINY, compile=compiled))
        loss, measured = module.objective(batch, PHASES[-1], SEEDS[:1])
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert (module._computed == module._compute) != compiled
        found.append({"loss": loss.detach(), **measured, **gradients})
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["udml", "pe", "static"])
def test_a_step_is_one_graph(data, method):
    """Then a CUDA graph holds all of it: nothing in it runs on the host or fetches a value. The seed is an input."""
    module, batch = make_module(data, method), data.train.batch.select(range(16))
    torch._dynamo.reset()
    computed = torch.compile(module._compute, fullgraph=True, backend="aot_eager")
    found = []
    for seed in (SEEDS[:1], SEEDS[1:2]):
        with torch._dynamo.config.patch(error_on_recompile=bool(found)):
            _, loss, _ = computed(batch, PHASES[-1], seed, 1.0)
        loss.backward()
        found.append(loss.item())
    assert found[0] != found[1], "the second step has the random numbers of the first"


def test_cuda_graphs_are_torch_compiles(data, monkeypatch):
    modes = []
    monkeypatch.setattr(torch, "compile", lambda call, mode=None: modes.append(mode) or call)
    for options in ({"cuda_graph": True}, {"compile": True}, {}):
        module = TrainingModule(make_module(data, "udml").model, data.spec, replace(TINY, **options))
        assert module._computed == module._compute
    assert modes == ["reduce-overhead", None]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda_graph: expected False without a CUDA device"):
            train(replace(TINY, cuda_graph=True), data, progress=False)
