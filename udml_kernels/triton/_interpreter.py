"""Triton's interpreter, about twice as fast: it repeats work for every operation that it need do but once.

It reaches into Triton 3.6's private parts; where a later version has others, the interpreter stays as it came.
"""

import contextlib
import dataclasses

import triton.language as tl
from triton.runtime import interpreter


def hasten() -> None:
    with contextlib.suppress(AttributeError, TypeError):
        # Range checks of integer sums, whose outcome only debug mode looks at.
        builder = interpreter.interpreter_builder
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
        patch = interpreter._patch_lang
        patched: dict = {}

        # A launch patches the language, and each device function that it calls does so again. That is needed once
        # for those that see it under its second name, triton.language.core.
        def call(self, *args, **kwargs):
            if self.fn not in patched:
                modules = [m for m in self.fn.__globals__.values() if m is tl.core]
                if modules and not any(patched.values()):
                    patch(self.fn)
                patched[self.fn] = bool(modules)
            return self.rewrite()(*args, **kwargs)

        interpreter.InterpretedFunction.__call__ = call
