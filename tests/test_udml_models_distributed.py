"""Two gloo processes, each with half of the batch, against one process with all of it."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from udml.encoders import MLPEncoder
from udml.layers import sync_batchnorm
from udml.models import build_model

RANKS, BATCH, CLASSES, STEPS = 2, 16, 4, 5
METHODS = {
    "udml": {"std_max": 1.0, "dropout_p": 0.2},
    "ogm-ge": {"alpha": 0.5},
    "greedy": {"warmup": 0, "window": 1, "tolerance": 0.0},
    "tmc": {},
}


def make(method):
    torch.manual_seed(0)
    encoders = {name: MLPEncoder(5, 8) for name in "abc"}
    return build_model(method, encoders, CLASSES, **METHODS[method]).double()


def run(method, share, wrap):
    """Parameters, buffers and gradients after a few steps on a share of each batch."""
    model = make(method)
    call = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        x = torch.randn(3, BATCH, 5, generator=generator, dtype=torch.float64)
        target = torch.randint(CLASSES, (BATCH,), generator=generator)
        sigma = torch.rand(BATCH, 3, generator=generator, dtype=torch.float64)
        seed, ids = torch.tensor([step]), torch.arange(BATCH)
        inputs = {name: values[share] for name, values in zip("abc", x, strict=True)}
        output = call(inputs, sigma=sigma[share], seed=seed, sample_ids=ids[share])
        optimizer.zero_grad()
        sum(model.loss(output, target[share]).values()).backward()
        model.after_backward(output, target[share], seed=seed)
        optimizer.step()
    return model.state_dict() | {f"{name}.grad": p.grad for name, p in model.named_parameters()}


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    share = slice(rank, None, RANKS)
    results = {method: run(method, share, lambda m: DistributedDataParallel(sync_batchnorm(m))) for method in METHODS}
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run_rank, (folder,), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("method", METHODS)
def test_ranks_do_what_one_process_does(method, ranks):
    whole = run(method, slice(None), lambda model: model)
    for rank in ranks:
        torch.testing.assert_close(rank[method], whole, rtol=1e-6, atol=1e-7)
    if method == "greedy":
        zero = [name for name in "abc" if not whole[f"encoders.{name}.0.weight.grad"].any()]
        assert len(zero) == 2, "the last step rebalances"
