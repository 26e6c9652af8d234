"""The suite runs on one device: the CPU, where Triton kernels are interpreted, or what UDML_TEST_DEVICE names."""

import os

import torch

DEVICE = torch.device(os.environ.get("UDML_TEST_DEVICE", "cpu"))

# Before anything imports Triton.
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    torch.set_default_device(DEVICE)
