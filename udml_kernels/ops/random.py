import torch
from torch import Tensor

from .. import backends, checks, reference
from ._op import Op


def _fake(shape, seed, stream, sample_ids, dtype):
    return seed.new_empty(shape, dtype=dtype)


_SCHEMA = "(SymInt[] shape, Tensor seed, SymInt stream, Tensor? sample_ids, ScalarType dtype) -> Tensor"
_normal = Op("normal", _SCHEMA, _fake)
_uniform = Op("uniform", _SCHEMA, _fake)


def _sizes(shape) -> list[int]:
    expected = "a tuple of at least one size, none negative"
    if not isinstance(shape, (tuple, list)):
        checks.fail("shape", expected, repr(shape), TypeError)
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            checks.fail("shape", expected, repr(tuple(shape)), TypeError)
    if len(shape) < 1 or any(size < 0 for size in shape):
        checks.fail("shape", expected, tuple(shape))
    return list(shape)


def _generate(op: Op, plain, shape, seed, stream, sample_ids, dtype) -> Tensor:
    shape = _sizes(shape)
    if dtype not in checks.FLOATS:
        checks.fail("dtype", "float32, float64, bfloat16 or float16", dtype, TypeError)
    checks.tensor_of("seed", seed, "an int64 tensor of one element, as draw_seed() gives", (torch.int64,))
    checks.seed(seed, seed.device)
    checks.stream(stream, 2**32)
    checks.sample_ids(sample_ids, shape[0], seed.device)
    backend = backends.select(seed.device, op)
    if backend == "reference":
        return plain(shape, seed, stream=stream, sample_ids=sample_ids, dtype=dtype)
    return op(backend, shape, seed, stream, sample_ids, dtype)


def normal(
    shape, seed: Tensor, *, stream: int = 0, sample_ids: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals, the same numbers that the ops use; |n| <= 5.89.

    Args:
        shape: (B, ...), at least one dimension; dim 0 counts samples.
        seed: int64, one element, as `draw_seed` gives; its device is the result's.
        stream: the counter's stream word, in [0, 2^32). Inside an op it is op_id + 256 * stream, with
            op_id 1 for inject_noise, 2 reparameterize, 3 noise_regression, 4 modality_dropout,
            9 reparameterize with pool=True of inputs with locations.
        sample_ids: int64 (B,), the samples' identities; None for 0..B-1.
        dtype: float32, float64 (the same integers evaluated in double), bfloat16 or float16 (rounded
            from the float32 value).

    Returns:
        A contiguous tensor of `shape`.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is expected.

    Source: Philox4x32-10 (Salmon et al., 2011) and Box-Muller.
    """
    return _generate(_normal, reference.normal, shape, seed, stream, sample_ids, dtype)


def uniform(
    shape, seed: Tensor, *, stream: int = 0, sample_ids: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniforms in [0, 1), multiples of 2^-24, the same numbers that the ops use. Arguments as for `normal`."""
    return _generate(_uniform, reference.uniform, shape, seed, stream, sample_ids, dtype)
