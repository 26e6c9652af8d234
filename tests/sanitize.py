"""Run the CPU kernels under AddressSanitizer and UBSan, with libstdc++'s assertions: `make sanitize`.

The ISA level of this processor is compiled into build/sanitize, beside links to the package and to these tests:
what runs there uses that library. The first finding ends the run with a report and an exit code other than 0.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

from udml_kernels.backends import supported_isa_levels

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitize"
FLAGS = "-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS"


def _setup():
    """setup.py as a module, for its flags and its functions that find torch and the compiler."""
    spec = importlib.util.spec_from_file_location("udml_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch("setuptools.setup"):
        spec.loader.exec_module(module)
    return module


def build(level: str) -> None:
    setup, package = _setup(), FOLDER / "udml_kernels"
    package.mkdir(parents=True, exist_ok=True)
    for name, folder in (("tests", FOLDER), *((path.name, package) for path in (ROOT / "udml_kernels").iterdir())):
        link, target = folder / name, (ROOT if folder == FOLDER else ROOT / "udml_kernels") / name
        if target.suffix != ".so" and not link.is_symlink():
            link.symlink_to(target)
    torch, _ = setup.find_torch()
    flags = [flag for flag in (*setup.COMMON_FLAGS, *setup.WARNING_FLAGS, *setup.MATH_FLAGS) if flag != "-O3"]
    flags += [*setup.INCLUDE_FLAGS, *setup.torch_flags(torch), *setup.ISA_FLAGS[level], *FLAGS.split()]
    link = ["-shared", "-fsanitize=address,undefined", f"-L{torch / 'lib'}", "-ltorch_cpu"]
    tools = setup.Toolchain(setup.find_compiler(), FOLDER / "objects")
    library = package / f"_C_cpu_{level}.so"
    tools.library(library, sorted((setup.CSRC / "cpu").glob("*.cpp")), flags, link, level)
    setup.build(tools)


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to load a sanitized library; its options end it at the first report."""

    def library(name: str) -> str:
        command = [*_setup().find_compiler().split(), f"-print-file-name={name}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    # libstdc++ as well, for exceptions: AddressSanitizer looks for __cxa_throw as it starts.
    preload = " ".join(map(library, ("libasan.so", "libubsan.so", "libstdc++.so")))
    options = {"LD_PRELOAD": preload, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return options


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("--cases", default="300", metavar="N", help="generated cases of each op (default 300)")
    parser.add_argument("--jobs", default="1", help="processes (default 1)")
    options, level = parser.parse_args(), supported_isa_levels()[0]
    build(level)
    environment = os.environ | sanitizer_environment() | {"UDML_KERNELS_ISA": level, "PYTHONPATH": str(FOLDER)}
    command = [sys.executable, "-m", "tests.fuzz", "--cases", options.cases, "--jobs", options.jobs]
    return subprocess.run(command, cwd=FOLDER, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
