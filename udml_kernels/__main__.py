"""python -m udml_kernels info | check | bench | aot"""

import os
import sys

from .tools.cli import main

try:
    code = main()
    sys.stdout.flush()
except BrokenPipeError:
    # The reader of the output, such as `head`, has closed the pipe. What is left must not be flushed at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 0
sys.exit(code)
