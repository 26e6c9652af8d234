"""What a wheel holds, what it is called, and when there is none; built from kernels of one line."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

from .projects import ROOT, copy_project, run_setup

# What glibc 2.28 and the libstdc++ of GCC 8 have: manylinux_2_28.
OLDEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}


@pytest.fixture
def project(tmp_path):
    sources = copy_project(tmp_path) / "csrc" / "cpu"
    sources.mkdir(parents=True)
    (sources / "kernel.cpp").write_text("int of_the_kernel() { return 1; }\n")
    (sources / "glibc.h").touch()
    return tmp_path


@pytest.fixture
def python_without_torch(tmp_path_factory):
    """A virtual environment with setuptools alone, as `python -m build` makes one."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    for name in ("setuptools", "_distutils_hack", f"setuptools-{setuptools.__version__}.dist-info"):
        (packages / name).symlink_to(Path(setuptools.__file__).parents[1] / name)
    return folder / "bin" / "python"


def _wheel(project: Path, **options: str):
    result = run_setup(project, "bdist_wheel", UDML_KERNELS_CUDA="0", **options)
    return result, [(path.name, zipfile.ZipFile(path).namelist()) for path in project.glob("dist/*.whl")]


def test_a_wheel_holds_every_level_and_serves_every_python(project):
    result, [(name, content)] = _wheel(project)
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"udml_kernels-[\d.]+-py3-none-linux_\w+\.whl", name)
    libraries = {file for file in content if file.endswith(".so")}
    assert libraries == {f"udml_kernels/_C_cpu_{level}.so" for level in ("avx512", "avx2", "baseline")}
    assert {"udml_kernels/py.typed", "udml/py.typed", "udml_kernels/_not_built_cuda.txt"} <= set(content)
    assert re.search(r"building the CPU kernels \(avx512, avx2, baseline\) with \S+ and torch 2\.", result.stdout)
    assert re.search(r"built the CPU kernels .* in \d+ s", result.stdout)


def test_no_wheel_without_kernels(project, python_without_torch):
    result, wheels = _wheel(project, python=python_without_torch)
    assert result.returncode != 0 and wheels == []
    [line] = [line for line in result.stderr.splitlines() if line.startswith("udml-kernels:")]
    assert "no wheel without kernels: no torch to build against" in line and "UDML_KERNELS_CPU=0" in line
    result, wheels = _wheel(project, PATH="")
    assert result.returncode != 0 and wheels == []
    assert "no wheel without kernels: no C++ compiler was found" in result.stderr


def test_a_wheel_without_kernels_for_those_who_ask(project, python_without_torch):
    result, [(_, content)] = _wheel(project, python=python_without_torch, UDML_KERNELS_CPU="0")
    assert result.returncode == 0, result.stderr
    assert "udml_kernels/_not_built_cpu.txt" in content and not any(file.endswith(".so") for file in content)


def test_an_editable_install_needs_no_torch(project, python_without_torch):
    result = run_setup(project, "build_ext", "--inplace", python=python_without_torch, UDML_KERNELS_CUDA="0")
    assert result.returncode == 0 and "without the cpu kernels: no torch" in result.stderr
    assert "no torch to build against" in (project / "udml_kernels" / "_not_built_cpu.txt").read_text()


def test_an_old_setuptools_is_named_in_one_line(project):
    (project / "setuptools.py").write_text('__version__ = "65.5.0"\n')
    result = run_setup(project, "egg_info")
    assert result.returncode != 0
    wanted = "udml-kernels: setuptools 77 or newer is needed, not 65.5.0: pip install -U setuptools"
    assert result.stderr.splitlines() == [wanted]


def _needs_newer(library: Path) -> list[str]:
    listed = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    found = re.findall(r"\((GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)\)", listed)
    assert found
    return [f"{name}_{version}" for name, version in found if tuple(map(int, version.split("."))) > OLDEST[name]]


@pytest.mark.parametrize("level", ["avx512", "avx2", "baseline"])
def test_the_libraries_run_on_older_systems(level):
    assert _needs_newer(ROOT / "udml_kernels" / f"_C_cpu_{level}.so") == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a library")
def test_a_library_for_newer_systems_is_noticed(tmp_path):
    (tmp_path / "new.cpp").write_text("#include <sstream>\nauto* made() { return new std::ostringstream; }\n")
    subprocess.run(["g++", "-shared", "-fPIC", "new.cpp", "-o", "new.so"], cwd=tmp_path, check=True)
    assert _needs_newer(tmp_path / "new.so") == ["GLIBCXX_3.4.26"]
