"""Generated cases: every op on random shapes, layouts, dtypes, values, gradients and options.

`make fuzz N=100000` runs that many cases per op; `python -m tests.fuzz --help` lists the options. A case is a number:
the same number is the same case everywhere, and `--case op:number` runs it alone and minimises it.
"""
