"""Generated cases: every op on random shapes, layouts, dtypes, values, gradients and options.

`make fuzz N=100000` runs that many cases an op, `python -m tests.fuzz --help` tells more. A case is a number: the
same number is the same case everywhere, and `--case op:number` runs it alone, made as small as it gets.
"""
