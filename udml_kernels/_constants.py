"""Python numbers as tensors. On a CUDA device they are kept between calls, as making one costs a launch."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

# Beyond so many numbers nothing more is kept. Nothing is dropped either: the device may still be reading it.
CAPACITY = 256
_kept: dict[tuple[bytes, int, torch.dtype, torch.device, int], Tensor] = {}


def numbers_tensor(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor (len(numbers),) that nothing may write to."""
    if not numbers:
        return torch.empty(0, dtype=dtype, device=device)
    compiling = torch.compiler.is_compiling()
    if device.type == "cpu" and not compiling and len(numbers) > 1:
        return torch.tensor(numbers, dtype=dtype, device=device)
    # A mode may make other tensors of these calls than plain ones (FakeTensorMode, make_fx).
    plain = not compiling and torch._C._len_torch_dispatch_stack() == 0
    if plain and device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        return _kept_for(torch.cuda.current_stream(device).cuda_stream, numbers, dtype, device)
    return _filled(numbers, dtype, device)


def _kept_for(stream: int, numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor for each stream, whose order makes the fill come before every use."""
    # Bytes tell -0 from 0.
    key = array("d", numbers).tobytes(), len(numbers), dtype, device, stream
    found = _kept.get(key)
    if found is None:
        # An inference tensor could not be saved for a later backward pass.
        with torch.inference_mode(False):
            found = _filled(numbers, dtype, device)
        if len(_kept) < CAPACITY:
            _kept[key] = found
    return found


def _filled(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fills neither synchronise with an accelerator nor break the capture of a CUDA graph."""
    if torch.compiler.is_compiling():
        # A product, as only that keeps a symbolic float dynamic.
        parts = [torch.ones((1,), dtype=dtype, device=device) * number for number in numbers]
    else:
        parts = [torch.full((1,), number, dtype=dtype, device=device) for number in numbers]
    return torch.cat(parts) if len(parts) != 1 else parts[0]
