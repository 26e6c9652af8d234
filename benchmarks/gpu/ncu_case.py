"""One call of each kernel that is to be looked at with ncu, which is to start with its profiler off.

    ncu --profile-from-start off ... python -m benchmarks.gpu.ncu_case BACKEND

Only the ops are profiled, not what makes their inputs. Of the ops before the noise regression, whose kernels also store
what they keep for one another, it prints how many sectors of 32 bytes their results and gradients are.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import udml_kernels as U
from udml_kernels.testing.works import tensors

IDEAL = "sectors of the results and gradients before the noise regression:"


class Calls:
    """The calls on one backend, on the GPU, or small ones on the CPU."""

    def __init__(self, backend: str):
        self.backend = backend
        self.device = "cpu" if backend == "cpu" else "cuda"
        self.seed = torch.tensor([7], device=self.device)
        self.stored = 0

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A leaf; on the CPU no dimension is larger than 16."""
        if self.device == "cpu":
            shape = tuple(min(n, 16) for n in shape)
        return torch.randn(*shape, device=self.device, dtype=dtype).requires_grad_()

    @contextlib.contextmanager
    def _profiled(self) -> Iterator[None]:
        if self.device == "cpu":
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        yield
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()

    def forward(self, name: str, *arguments: object, **options: object) -> list[Tensor]:
        with U.use_backend(self.backend), self._profiled():
            outputs = list(tensors(getattr(U, name)(*arguments, **options)))
        self.stored += sum(t.nbytes for t in outputs)
        return outputs

    def backward(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        incoming = [torch.randn_like(t) for t in outputs]
        with U.use_backend(self.backend), self._profiled():
            gradients = torch.autograd.grad(outputs, leaves, incoming)
        self.stored += sum(t.nbytes for t in gradients)


def main(backend: str) -> None:
    calls = Calls(backend)
    new, seed = calls.new, calls.seed
    for dtype in (torch.float32, torch.bfloat16):
        mu, logvar = new(64, 1568, 768, dtype=dtype), new(64, 1568, 768, dtype=dtype)
        calls.forward("inject_noise", mu, 0.5, seed=seed)
        calls.backward(calls.forward("reparameterize", mu, logvar, seed=seed), [mu, logvar])
        mu, logvar = new(2048, 512, 7, 7, dtype=dtype), new(2048, 512, 7, 7, dtype=dtype)
        calls.forward("reparameterize", mu, logvar, seed=seed)
        for spatial, batch, width in (((), 65536, 512), ((60, 80), 32, 256)):
            features = [new(batch, width, *spatial, dtype=dtype) for _ in range(2)]
            noise = new(batch, 2, *spatial).detach().abs() + 0.5
            fused, _ = calls.forward("weighted_fusion", features, noise)
            calls.backward([fused], features)
    print(IDEAL, calls.stored // 32, flush=True)
    std = new(2, 38400, 256)
    weights = [new(2, 256, 256), new(2, 256), new(2, 1, 256), new(2, 1)]
    target = new(2, 38400, 1).detach().abs()
    _, loss = calls.forward("noise_regression", std, *weights, target, dropout_p=0.1, seed=seed)
    calls.backward([loss], [std, *weights])


if __name__ == "__main__":
    main(sys.argv[1])
