"""The suite runs on one device: the CPU, where Triton kernels are interpreted, or what UDML_TEST_DEVICE names."""

import os
from datetime import date

import torch

DEVICE = torch.device(os.environ.get("UDML_TEST_DEVICE", "cpu"))

# Before anything imports Triton.
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    torch.set_default_device(DEVICE)

# Which quarter of the conformance cases interpreted Triton runs, and the CUDA kernels under sanitizers: 0 to 3, another
# one each day, or "all". In the environment, so that all processes of one run agree.
QUARTER = os.environ.setdefault("UDML_TEST_QUARTER", str(date.today().toordinal() % 4))
