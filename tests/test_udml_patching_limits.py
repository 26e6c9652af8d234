"""What `patch` refuses, leaving the model as it was, and models in wrappers."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from udml.layers import ProbabilisticHead
from udml.patching import concat_fusion, noise_estimator, patch, probabilistic_head

from .plain_udml import (
    CLASSES,
    CLOSE,
    HIDDEN,
    WIDTH,
    Branch,
    Grouped,
    Plain,
    inputs,
    relu_estimator,
    same_outputs,
    twins,
)

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")


def test_copies_that_would_go_unnoticed_are_refused():
    tied = Grouped()
    tied.other = nn.Linear(WIDTH, HIDDEN)
    tied.other.weight = tied.estimators[0][0].weight
    with pytest.raises(ValueError, match="would be copied, but other parts of the model share them"):
        patch(tied, {"estimators": relu_estimator()})


class OneWay(nn.Linear):
    """Loads its twin's weight transposed, which only it knows."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + "weight"] = state_dict.pop(prefix + "kernel").mT
        super()._load_from_state_dict(state_dict, prefix, *args)


class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2))


def test_errors_leave_the_model_as_it_was():
    model = Plain()
    model.kernel = Kernel()
    model.alias = model.classifier
    hooked = ProbabilisticHead(4, WIDTH)
    for module in (hooked, model.visual.head):
        module.register_forward_hook(lambda *_: None)
    ready, shared = ProbabilisticHead(4, WIDTH), nn.Linear(2 * WIDTH, CLASSES)
    shared.bias = model.audio.head.mu[0].bias
    modules, state = list(model.named_modules()), copy.deepcopy(model.state_dict())
    cases = {
        r"names of submodules \(audio\.head.*\), got 'audio\.haed'": {"audio.haed": ready},
        r"names of submodules \(audio, visual, .*\), got ''": {"": ready},
        r"apart from each other, got 'audio\.head', inside 'audio'": {"audio.head": ready, "audio": Branch()},
        "got 'alias', the same module as 'classifier'": dict.fromkeys(("classifier", "alias"), noise_estimator),
        r"\['visual\.head'\]: expected a module of its own": {"audio.head": ready, "visual.head": ready},
        r"\['audio\.head'\]: the state does not fit: mu\.0\.weight is \(5, 4\) in the old module, \(9, 4\)": {
            "classifier": nn.Linear(2 * WIDTH, CLASSES),
            "audio.head": ProbabilisticHead(4, 9),
        },
        r"the old one alone has mu\.0\.weight \(5, 4\), .*; the new one alone has mu\.weight \(5, 4\)": {
            "audio.head": ProbabilisticHead(4, WIDTH, batch_norm=False)
        },
        "expected another module, got the old one": {"audio.head": lambda old: old},
        r"another part's: bias": {"classifier": shared},
        "expected hooks on the old or on the new module, got both": {"visual.head": hooked},
        "kernel could not be brought back from weight": {"kernel": OneWay(3, 2, bias=False)},
    }
    for message, replacements in cases.items():
        with pytest.raises(ValueError, match=message):
            patch(model, replacements)
        assert list(model.named_modules()) == modules
    for replacement in ("head", lambda old: "head"):
        with pytest.raises(TypeError, match=r"\['audio\.head'\]: expected a module, or .*, got str"):
            patch(model, {"classifier": shared, "audio.head": replacement})
    with pytest.raises(TypeError, match="replacements: expected modules by name, got list"):
        patch(model, [ready])
    assert list(model.named_modules()) == modules
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    other = Grouped()
    with pytest.raises(ValueError, match=r"0\.0\.weight is \(8, 5\) in the old module, \(9, 5\) in the new one"):
        patch(other, {"estimators": relu_estimator(hidden=9)})
    with pytest.raises(ValueError, match=r"the new one alone has .*|Missing key"):
        patch(other, {"estimators": relu_estimator(3)})


def test_compiled_models_are_compiled_again():
    model, batch = Plain().eval(), inputs()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(*batch)
    with patch(
        compiled, twins() | {"classifier": lambda old: nn.Sequential(concat_fusion(old, [WIDTH] * 2), nn.Tanh())}
    ):
        torch.testing.assert_close(compiled(*batch), expected.tanh(), **CLOSE)
    torch.testing.assert_close(compiled(*batch), expected)
    with (
        patch(compiled, {"audio.head": same_outputs()}),
        pytest.raises(Exception, match="seed: expected a tensor from"),
    ):
        model.train()
        compiled(*batch)


def test_a_compiled_twin_without_a_seed_draws_outside_the_graph():
    model, batch = Plain().train(), inputs()
    sampling = partial(probabilistic_head, outputs=("z", "std"))
    with patch(model, {"audio.head": sampling, "visual.head": sampling}):
        results = []
        for call in (model, torch.compile(model, backend="aot_eager")):
            state = copy.deepcopy(model.state_dict())
            torch.manual_seed(3)
            model.zero_grad()
            outputs = [call(*batch) for _ in range(2)]
            assert not torch.equal(*outputs), "each call has noise of its own"
            sum(y.square().sum() for y in outputs).backward()
            results.append((outputs, {name: p.grad.clone() for name, p in model.named_parameters()}))
            model.load_state_dict(state)
    torch.testing.assert_close(results[1], results[0])


def test_distributed_models():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, batch = Plain(), inputs()
        alone = copy.deepcopy(model)
        wrapped = DistributedDataParallel(model)
        # A reduction that can be seen.
        wrapped.register_comm_hook(None, lambda _, bucket: done(3 * bucket.buffer()))
        with patch(wrapped, twins()):
            wrapped(*batch).sum().backward()
        alone(*batch).sum().backward()
        for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p.grad, 3 * q.grad, rtol=1e-4, atol=1e-5, msg=name)
        with pytest.raises(ValueError, match="DDP would not reduce"):
            patch(DistributedDataParallel(Grouped()), {"estimators": relu_estimator()})
        sharded = fully_shard(Plain(), mesh=dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="not yet sharded or scripted, got FSDPModule"):
            patch(sharded, {"audio.head": same_outputs()})
    finally:
        dist.destroy_process_group()


def done(value):
    future = torch.futures.Future()
    future.set_result(value)
    return future


def test_scripted_models_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="got ScriptModule"):
        patch(model, {"0": nn.Linear(2, 2)})
