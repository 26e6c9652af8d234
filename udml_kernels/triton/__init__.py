"""The Triton column: a file per op, imported when a call first reaches it.

Without a GPU the kernels run in Triton's interpreter, if TRITON_INTERPRET=1 is set before Triton is imported.
"""
