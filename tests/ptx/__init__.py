"""Compiled GPU code, executed on the CPU.

interpreter/ is a PTX interpreter in C++: it parses what nvcc and Triton emit and executes it warp by warp on CPU
tensors. It checks every access (bounds to the byte, alignment, shared memory that nobody has written), races within and
between blocks, barriers and shuffles, and it counts instructions and memory traffic.

build.py compiles it, and the PTX of csrc/cuda. machine.py is its Python interface; cuda.py and triton.py make it
serve the backends `cuda` and `triton` for CPU tensors.
"""
