"""The suite runs on one device: the CPU, or what UDML_TEST_DEVICE names.

On the CPU, Triton's kernels run in Triton's interpreter or compiled for a GPU (tests/ptx). UDML_TEST_TRITON says which:
`interpreter`; `ptx`; or `portable`, which is PTX without NVIDIA's approximate functions, as for the GPUs of others.
"""

import os
from datetime import date

import torch

DEVICE = torch.device(os.environ.get("UDML_TEST_DEVICE", "cpu"))

TRITON = os.environ.get("UDML_TEST_TRITON", "interpreter")
if TRITON not in ("interpreter", "ptx", "portable"):
    raise ValueError(f"UDML_TEST_TRITON: expected interpreter, ptx or portable, got {TRITON!r}")

# Before anything imports Triton.
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", str(int(TRITON == "interpreter")))
else:
    torch.set_default_device(DEVICE)

# Interpreted Triton runs one quarter of the conformance cases, test_aot half of its targets, and test_ptx_counts one of
# two dtypes. Which: 0 to 3, another each day, or "all". It is an environment variable so that all processes of a
# run use the same one.
QUARTER = os.environ.setdefault("UDML_TEST_QUARTER", str(date.today().toordinal() % 4))

# Compiling is most of the time of Triton's kernels as PTX: they run a twelfth of the conformance cases. Which: 0 to 11,
# another each day, or "all".
TWELFTH = os.environ.setdefault("UDML_TEST_TWELFTH", str(date.today().toordinal() % 12))
