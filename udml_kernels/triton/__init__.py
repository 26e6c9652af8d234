"""The Triton backend. Each op has a file, which is imported at the op's first call.

Without a GPU the kernels run in Triton's interpreter, if TRITON_INTERPRET=1 is set before Triton is imported.
"""
