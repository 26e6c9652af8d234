"""python -m udml_kernels info | check | bench | aot"""

import sys

from .tools.cli import main

sys.exit(main())
