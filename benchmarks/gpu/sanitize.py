"""Forward and backward of every n-th conformance case, nothing compared: what compute-sanitizer is to watch.

python -m benchmarks.gpu.sanitize N BACKEND
"""

import sys

import torch

import udml_kernels
from udml_kernels.testing.cases import CASES, Case
from udml_kernels.testing.conformance import as_leaves, evaluate, incoming_gradients, wanted_inputs


def run(case: Case, dtype: torch.dtype, backend: str) -> None:
    inputs = case.inputs(dtype)
    wanted = wanted_inputs(case, inputs)
    function = getattr(udml_kernels, case.op)
    with udml_kernels.use_backend(backend):
        outputs, _ = evaluate(function, case, as_leaves(inputs, wanted), wanted)
        evaluate(function, case, as_leaves(inputs, wanted), wanted, incoming_gradients(case, outputs))


def main(every: int, backend: str) -> None:
    if backend != "cpu":
        torch.set_default_device("cuda")
    count = 0
    for case in CASES[::every]:
        for dtype in (torch.float32, torch.bfloat16):
            run(case, dtype, backend)
            count += 1
            # A step that is ended by its time limit has said how far it came.
            if count % 20 == 0:
                print(count, "cases", flush=True)
    if backend != "cpu":
        torch.cuda.synchronize()
    print(count, "cases ran")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
