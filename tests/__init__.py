"""The suite runs on one device: the CPU, or what UDML_TEST_DEVICE names.

On the CPU, tests/ptx executes the compiled GPU kernels. UDML_TEST_TRITON says how Triton's are compiled: `ptx`, or
`portable`, which is PTX without NVIDIA's approximate functions, as for the GPUs of others.
"""

import os
from datetime import date

import torch

DEVICE = torch.device(os.environ.get("UDML_TEST_DEVICE", "cpu"))

TRITON = os.environ.get("UDML_TEST_TRITON", "ptx")
if TRITON not in ("ptx", "portable"):
    raise ValueError(f"UDML_TEST_TRITON: expected ptx or portable, got {TRITON!r}")

if DEVICE.type != "cpu":
    torch.set_default_device(DEVICE)

# A part that changes each day, 0 to 3, or "all": test_aot compiles for a quarter of its targets and dtypes,
# test_ptx_counts runs one of two dtypes, and test_fuzz half of the planted faults. It is an environment variable so
# that all processes of a run use the same one.
QUARTER = os.environ.setdefault("UDML_TEST_QUARTER", str(date.today().toordinal() % 4))

# Compiling is most of the time of Triton's kernels as PTX: they run a twelfth of the conformance cases. Which: 0 to 11,
# another each day, or "all".
TWELFTH = os.environ.setdefault("UDML_TEST_TWELFTH", str(date.today().toordinal() % 12))
