"""Two gloo processes, each with its share of a batch, against one process with the whole batch."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from udml.layers import ModalityDependency, sync_batchnorm

RANKS = 2
SHARES = (slice(0, 3), slice(3, 8))
HALVES = (slice(0, 4), slice(4, 8))


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.BatchNorm2d(2))


def norm_step(norm, x, upstream):
    """Output, gradients of sum(y * upstream), running statistics, and the output in evaluation afterwards."""
    x = x.clone().requires_grad_()
    y = norm.train()(x)
    grads = torch.autograd.grad((y * upstream).sum(), [x, *norm.parameters()])
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    return {"y": y.detach(), "grads": grads, "state": state, "eval": norm.eval()(x).detach()}


def ddp_step(given, rows):
    # In a function of its own: the wrapper must be gone before its process group, or their threads may block the exit.
    model = network()
    model.load_state_dict(given["network"])
    model = DistributedDataParallel(sync_batchnorm(model))
    model(given["images"][rows]).square().mean().backward()
    return {"grads": [p.grad for p in model.parameters()], "state": model.module.state_dict()}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    given = torch.load(folder / "given.pt", weights_only=True)
    rows, half = SHARES[rank], HALVES[rank]

    dependency = ModalityDependency(3, momentum=0.75)
    samples = ModalityDependency(3, momentum=0.75, per_sample=True)
    alphas = []
    for logits, present in zip(given["logits"], given["present"], strict=True):
        mine = None if present is None else present[rows]
        alphas.append((dependency(logits[:, rows], mine), samples(logits[:, rows], mine)))

    norm = nn.BatchNorm2d(3, momentum=given["momentum"]).double()
    norm.load_state_dict(given["norm"])
    step = norm_step(sync_batchnorm(norm), given["x"][rows], given["upstream"][rows])

    torch.save({"alphas": alphas, "norm": step, **ddp_step(given, half)}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def given():
    torch.manual_seed(0)
    present = torch.rand(8, 3) < 0.5
    present[:3, 0] = present[:, 2] = False
    present[:, 1] = True
    norm = nn.BatchNorm2d(3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return {
        "logits": [torch.randn(3, 8, 4, 2), torch.randn(3, 8, 4)],
        "present": [present, None],
        # A mean far from 0 that differs between the ranks.
        "x": torch.randn(8, 3, 4, 5, dtype=torch.float64) + torch.arange(8.0).reshape(-1, 1, 1, 1) + 100,
        "upstream": torch.randn(8, 3, 4, 5, dtype=torch.float64),
        "momentum": 0.3,
        "norm": norm.state_dict(),
        "network": network().state_dict(),
        "images": torch.randn(8, 3, 6, 6),
    }


@pytest.fixture(scope="module")
def ranks(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(given, folder / "given.pt")
    mp.spawn(run_rank, (folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_every_rank_holds_the_whole_batchs_dependency(given, ranks):
    dependency = ModalityDependency(3, momentum=0.75)
    for step, (logits, present) in enumerate(zip(given["logits"], given["present"], strict=True)):
        whole = dependency(logits, present)
        for rank in ranks:
            torch.testing.assert_close(rank["alphas"][step][0], whole, rtol=1e-6, atol=0)
            assert torch.equal(rank["alphas"][step][0], ranks[0]["alphas"][step][0])
    own = given["logits"][1].abs().sum(2).mT
    for rank, rows in zip(ranks, SHARES, strict=True):
        torch.testing.assert_close(rank["alphas"][1][1], own[rows])


def test_synced_batch_norm_is_the_whole_batchs(given, ranks):
    norm = nn.BatchNorm2d(3, momentum=given["momentum"]).double()
    norm.load_state_dict(given["norm"])
    whole = norm_step(norm, given["x"], given["upstream"])
    close = {"rtol": 1e-9, "atol": 1e-11}
    for name in ("y", "eval"):
        torch.testing.assert_close(torch.cat([rank["norm"][name] for rank in ranks]), whole[name], **close)
    for rank in ranks:
        torch.testing.assert_close(rank["norm"]["state"], whole["state"], **close)
    of_input, *of_parameters = whole["grads"]
    torch.testing.assert_close(torch.cat([rank["norm"]["grads"][0] for rank in ranks]), of_input, **close)
    for i, expected in enumerate(of_parameters, 1):
        torch.testing.assert_close(sum(rank["norm"]["grads"][i] for rank in ranks), expected, **close)


def test_a_network_under_ddp_gets_the_whole_batchs_gradients(given, ranks):
    model = network()
    model.load_state_dict(given["network"])
    alone = copy.deepcopy(model)
    model(given["images"]).square().mean().backward()
    for rank in ranks:
        torch.testing.assert_close(rank["grads"], [p.grad for p in model.parameters()], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rank["state"], model.state_dict(), rtol=1e-5, atol=1e-6)
    alone(given["images"][HALVES[0]])
    difference = (alone[1].running_mean - model[1].running_mean).abs().max()
    assert difference > 1e-4, "a rank's own statistics would be others"
