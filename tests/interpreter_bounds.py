"""Bounds checks for interpreted Triton kernels, which read and write raw addresses as a GPU does.

A load or store outside the storages of the launch's arguments raises, in any test.

The allocator's header lies between two storages, so an access past the end of one is found, whatever follows it.
"""

from bisect import bisect_right

import numpy as np
from torch import Tensor
from triton.runtime import interpreter

# First and last addresses of the storages of the running kernel, sorted.
_begins: list[int] = []
_ends: list[int] = []


def _storages(value) -> set[tuple[int, int]]:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {(storage.data_ptr(), storage.data_ptr() + storage.nbytes())}
    if isinstance(value, (tuple, list)):
        return set().union(*map(_storages, value)) if value else set()
    return set()


def _check(pointers: interpreter.TensorHandle, mask: interpreter.TensorHandle, what: str) -> None:
    addresses = np.broadcast_to(pointers.data, np.shape(mask.data))[mask.data.astype(bool)]
    if addresses.size == 0:
        return
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    first, last = int(addresses.min()), int(addresses.max())
    at = bisect_right(_begins, first) - 1
    if at >= 0 and last + size <= _ends[at]:
        return
    # In several storages: the addresses of one load rarely lie in more than one.
    where = np.searchsorted(np.array(_begins), addresses, side="right") - 1
    outside = (where < 0) | (addresses + size > np.array(_ends)[where])
    if outside.any():
        raise IndexError(f"{what} of {int(outside.sum())} elements outside every tensor of the launch")


def install() -> None:
    arguments, builder = interpreter.GridExecutor._init_args_hst, interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def init_args(self, args, kwargs):
        on_host = arguments(self, args, kwargs)
        found = sorted(_storages(on_host[0]) | _storages(tuple(on_host[1].values())))
        _begins[:], _ends[:] = [begin for begin, _ in found], [end for _, end in found]
        return on_host

    def checked_load(self, pointers, mask, *rest):
        _check(pointers, mask, "load")
        return load(self, pointers, mask, *rest)

    def checked_store(self, pointers, value, mask, *rest):
        _check(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest)

    interpreter.GridExecutor._init_args_hst = init_args
    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
