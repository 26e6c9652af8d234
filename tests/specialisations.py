"""Counts the kernels that Triton would compile for training steps, without compiling any.

`python -m tests.specialisations` prints the count after steps of 64 samples, of 48 with other streams, and of 37.
"""

import torch
from torch import Tensor
from triton.runtime import driver

import udml_kernels
from udml_kernels import backends
from udml_kernels.tools.aot_triton import Driver, target_of
from udml_kernels.triton import _launch


class _Recorder:
    fast = True

    def __init__(self):
        self.seen: set[str] = set()

    def __call__(self, kernel, programs: int, args: tuple, constants: dict) -> None:
        binder = kernel.device_caches[0][-1]
        bound, specialization, options = binder(*args, **constants)
        fixed = [str(bound[p.name]) for p in kernel.params if p.is_constexpr]
        self.seen.add(f"{kernel.__module__} {kernel.__name__} {specialization} {fixed} {options}")


def _step(rows: int, stream: int) -> None:
    seed = torch.tensor([3])

    def leaf(*shape: int) -> Tensor:
        return torch.rand(rows, *shape).requires_grad_()

    def backward(*results) -> None:
        outputs = [t for t in torch.utils._pytree.tree_leaves(results) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])

    backward(udml_kernels.inject_noise(leaf(3, 32, 32), torch.rand(rows), seed=seed, stream=stream))
    for shape in ((512,), (64, 7, 7), (8, 56, 56)):
        backward(udml_kernels.reparameterize(leaf(*shape), leaf(*shape), seed=seed, stream=stream))
    features, _ = udml_kernels.modality_dropout([leaf(256), leaf(256)], 0.3, seed=seed, stream=stream)
    backward(udml_kernels.weighted_fusion(features, leaf(2), (1.0, 2.0)))
    backward(udml_kernels.evidential_fusion(leaf(2, 34)))
    backward(udml_kernels.evidential_loss(leaf(34), torch.zeros(rows, dtype=torch.int64)))
    weights = [torch.rand(shape, requires_grad=True) for shape in ((64, 128), (64,), (1, 64), (1,))]
    backward(
        udml_kernels.noise_regression(leaf(128), *weights, torch.rand(rows, 1), dropout_p=0.1, seed=seed, stream=stream)
    )


def main() -> None:
    driver.set_active(Driver(target_of("sm_90")))
    recorder = _launch.listener = _Recorder()
    backends._unavailable["triton"] = None
    backends._SERVES_NO_CPU.discard("triton")
    counts = []
    with udml_kernels.use_backend("triton"):
        for rows, streams in ((64, (0,)), (48, (1, 7, 16, 2**24 - 1)), (37, (0,))):
            for stream in streams:
                _step(rows, stream)
            counts.append(len(recorder.seen))
    print(*counts)


if __name__ == "__main__":
    main()
