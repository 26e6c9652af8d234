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

# Interpreted Triton, and the CUDA kernels under sanitizers, run one quarter of the conformance cases, and test_aot half
# of its targets. Which: 0 to 3, another each day, or "all". It is an environment variable so that all processes of a
# run use the same one.
QUARTER = os.environ.setdefault("UDML_TEST_QUARTER", str(date.today().toordinal() % 4))
