"""What only a GPU can show: captured graphs, several devices, tensors beyond 2^31 elements, approximate instructions.

`make test-gpu` runs these, and the conformance suite on the device. Everything here is skipped where there is no GPU.
"""

import pytest
import torch

import udml_kernels
from udml_kernels import backends, draw_seed, reference
from udml_kernels.tools.tolerances import NORMAL_ON_ACCELERATOR

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")
COLUMNS = [
    name
    for name in ("cuda", "triton")
    if backends.why_unavailable(name) is None and not (name == "triton" and backends.triton_is_interpreted())
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def _step(mu, logvar, seed):
    noisy = udml_kernels.inject_noise(mu, 0.5, clamp=(-3.0, 3.0), normalize=(2.0, 0.1, 0.5), seed=seed)
    z, std, kl = udml_kernels.reparameterize(noisy, logvar, seed=seed)
    (first, second), _ = udml_kernels.modality_dropout([z, z * 2], 0.5, seed=seed)
    weights = torch.stack((std.mean(1), 2 * std.mean(1)), 1)
    fused, _ = udml_kernels.weighted_fusion([first, second], weights)
    return fused.square().mean() + 1e-3 * kl.mean()


@pytest.mark.parametrize("column", COLUMNS)
def test_a_captured_graph_draws_fresh_noise_at_each_replay(column):
    mu, logvar = (torch.randn(64, 512, device="cuda").requires_grad_() for _ in range(2))
    with udml_kernels.use_backend(column):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                _step(mu, logvar, draw_seed("cuda")).backward()
        torch.cuda.current_stream().wait_stream(stream)
        mu.grad = logvar.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            seed = draw_seed("cuda")
            loss = _step(mu, logvar, seed)
            loss.backward()
        seen = []
        for _ in range(3):
            graph.replay()
            torch.cuda.synchronize()
            seen.append((seed.clone(), loss.detach().clone(), mu.grad.clone()))
        assert len({int(s) for s, _, _ in seen}) == 3
        for drawn, value, gradient in seen:
            leaves = [t.detach().clone().requires_grad_() for t in (mu, logvar)]
            again = _step(*leaves, drawn)
            again.backward()
            assert torch.equal(again.detach(), value) and torch.equal(leaves[0].grad, gradient)


@two_gpus
@pytest.mark.parametrize("column", COLUMNS)
def test_tensors_on_another_device_than_the_current_one(column):
    results = []
    for device in ("cuda:0", "cuda:1"):
        x, seed = torch.linspace(-1, 1, 3000).reshape(3, 1000).to(device), torch.tensor([5], device=device)
        with udml_kernels.use_backend(column), torch.cuda.device(0):
            results.append(udml_kernels.inject_noise(x, 0.5, seed=seed))
    assert results[1].device == torch.device("cuda:1") and torch.equal(results[0].cpu(), results[1].cpu())


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("rows", (1, 3))
def test_more_than_2_to_the_31_elements(column, rows):
    free, _ = torch.cuda.mem_get_info()
    size = 2**31 + 4099 if rows == 1 else 2**30 + 4099
    if free < rows * size * 5:
        pytest.skip(f"needs {rows * size * 5 >> 30} GiB of free GPU memory")
    seed = torch.tensor([3], device="cuda")
    x = torch.zeros((rows, size), dtype=torch.bfloat16, device="cuda")
    with udml_kernels.use_backend(column):
        y = udml_kernels.inject_noise(x, 1.0, seed=seed)
        # The same samples' last elements, by counters: a sample begins with any shorter one, so only its end is new.
        strided = udml_kernels.inject_noise(x[:, :1].expand(rows, size), 1.0, seed=seed)
        assert torch.equal(y[-1], strided[-1])
        short = udml_kernels.inject_noise(x[:, :4096], 1.0, seed=seed)
    assert torch.equal(y[:, :4096], short)
    tail = y[-1, -4096:].float()
    assert not tail.isnan().any() and 0.9 < float(tail.std()) < 1.1
    assert not torch.equal(tail, y[-1, :4096].float())


@pytest.mark.parametrize("column", COLUMNS)
def test_the_approximate_instructions_keep_the_contracts_bound(column):
    """Integers exactly, normals within 5e-6 max(1, |n|), over 2^26 of them."""
    seed, shape = torch.tensor([20240229], device="cuda"), (64, 2**20)
    with udml_kernels.use_backend(column):
        uniform, normal = udml_kernels.uniform(shape, seed), udml_kernels.normal(shape, seed)
    for row in range(0, 64, 16):
        ids = torch.arange(row, row + 16, device="cuda")
        assert torch.equal(uniform[row : row + 16], reference.uniform((16, 2**20), seed, sample_ids=ids))
        exact = reference.normal((16, 2**20), seed, sample_ids=ids, dtype=torch.float64)
        error = (normal[row : row + 16].double() - exact).abs() / exact.abs().clamp(min=1)
        assert float(error.max()) <= NORMAL_ON_ACCELERATOR


@pytest.mark.parametrize("column", COLUMNS)
def test_every_run_gives_the_same_bits(column):
    mu, logvar = (torch.randn(64, 512, 7, 7, device="cuda") for _ in range(2))
    seed, results = torch.tensor([1], device="cuda"), []
    for _ in range(3):
        leaves = [mu.clone().requires_grad_(), logvar.clone().requires_grad_()]
        with udml_kernels.use_backend(column):
            _step(*leaves, seed).backward()
        results.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_no_call_waits_for_the_gpu():
    """Nothing is read back: the host may run ahead, and a graph can be captured."""
    mu, logvar, seed = torch.randn(8, 64, device="cuda"), torch.randn(8, 64, device="cuda"), draw_seed("cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for column in COLUMNS:
            with udml_kernels.use_backend(column):
                _step(mu.requires_grad_(), logvar.requires_grad_(), seed).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_chosen_configuration_is_kept(monkeypatch):
    if "triton" not in COLUMNS:
        pytest.skip("Triton does not run here")
    from udml_kernels.triton import _tuning

    monkeypatch.setattr(_tuning, "enabled", True)
    monkeypatch.setattr(_tuning, "_chosen", {})
    seed = torch.tensor([1], device="cuda")
    with udml_kernels.use_backend("triton"):
        first = udml_kernels.normal((64, 65536), seed)
        chosen = dict(_tuning._chosen)
        second = udml_kernels.normal((64, 65536), seed)
    assert len(chosen) == 1 and chosen == _tuning._chosen and torch.equal(first, second)
