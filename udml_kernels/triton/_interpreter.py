"""Triton's interpreter, about twice as fast, and with products of matrices as a GPU forms them.

It reaches into Triton 3.6's private parts; where a later version has others, the interpreter stays as it came.
"""

import contextlib
import dataclasses

import triton.language as tl
from triton.runtime import interpreter


def adapt() -> None:
    with contextlib.suppress(AttributeError, TypeError):
        _without_overflow_checks()
        _patched_once()
        _dots_in_order()


def _without_overflow_checks() -> None:
    """Range checks of integer sums, whose outcome only debug mode looks at, are a third of the time."""
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _patched_once() -> None:
    """A launch patches the language, and each device function that it calls would do so again.

    That is needed once, for those that see it under its second name, triton.language.core.
    """
    patch = interpreter._patch_lang
    patched: dict = {}

    def call(self, *args, **kwargs):
        if self.fn not in patched:
            modules = [m for m in self.fn.__globals__.values() if m is tl.core]
            if modules and not any(patched.values()):
                patch(self.fn)
            patched[self.fn] = bool(modules)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _dots_in_order() -> None:
    """tl.dot adds its terms one after the other in every row. BLAS adds them otherwise in some rows than in others."""
    with_blas = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if a.data.dtype != d.data.dtype or a.data.ndim != 2:
            return with_blas(self, a, b, d, input_precision, max_num_imprecise_acc)
        # Over an axis that is not the last one, NumPy adds slice by slice.
        products = (a.data[:, :, None] * b.data[None, :, :]).sum(1)
        return interpreter.TensorHandle(products + d.data, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
