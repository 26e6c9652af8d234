"""The CUDA library as nvcc built it, and the build itself on a package with a kernel of one line. No GPU is needed."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import build_support
from build_support import CannotBuild, find_nvcc

from .backends import OPS
from .projects import ROOT, copy_project, run_setup

LIBRARY = ROOT / "udml_kernels" / "_C_cuda.so"


def _run(command: list, **options) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_library_loads_beside_any_torch_and_binds_every_op():
    code = f"""
import json, torch
from udml_kernels import backends
has = torch._C._dispatch_has_kernel_for_dispatch_key
print(json.dumps({{
    "missing": [name for name in {sorted(OPS)} if not has(f"udml_kernels::{{name}}.cuda", "CUDA")],
    "reason": backends.why_unavailable("cuda"),
    "facts": backends.cuda_facts,
    "initialized": torch.cuda.is_initialized(),
}}))"""
    told = json.loads(_run([sys.executable, "-c", code], cwd=ROOT))
    assert told["missing"] == [] and not told["initialized"]
    assert told["reason"] is None or told["reason"].startswith("no CUDA device")
    assert "release" in told["facts"]["nvcc"]


def test_the_library_carries_what_it_says():
    triton = find_spec("triton")
    tool = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump" if triton else "cuobjdump"
    listed = _run([tool, "--list-elf", "--list-ptx", LIBRARY])
    carried = set(re.findall(r"(sm_\d+)\.cubin", listed)) | {
        f"{code} PTX" for code in re.findall(r"(sm_\d+)\.ptx", listed)
    }
    code = "from udml_kernels import backends; print(backends.cuda_facts['cuda archs'])"
    told = _run([sys.executable, "-c", code], cwd=ROOT).split()
    assert carried == {re.sub(r"compute_(\d+)", r"sm_\1 PTX", code) for code in told}
    if "UDML_KERNELS_CUDA_ARCHS" not in os.environ:
        known = find_nvcc().architectures()
        assert carried == {f"sm_{arch}" for arch in (80, 90, 100, 120) if arch in known} | {"sm_100 PTX"}


def test_the_library_needs_no_cuda_library():
    needed = re.findall(r"NEEDED.*\[(.*)\]", _run(["readelf", "-d", LIBRARY]))
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "cuda" in name or "c10" in name or "python" in name]


@pytest.fixture
def project(tmp_path):
    """A package with one kernel, and a C++ file of the same name."""
    sources = copy_project(tmp_path) / "csrc" / "cuda"
    sources.mkdir(parents=True)
    (sources / "value.h").write_text("#define VALUE 1\n")
    (sources / "kernel.cu").write_text('#include "value.h"\n__global__ void kernel(int* x) { *x = VALUE; }\n')
    (sources / "kernel.cpp").write_text("int of_the_host() { return 1; }\n")
    return tmp_path


def _build(project: Path, **environment: str) -> subprocess.CompletedProcess:
    options = {"UDML_KERNELS_CPU": "0", "UDML_KERNELS_CUDA_ARCHS": "90"} | environment
    return run_setup(project, "build_ext", "--inplace", **options)


def test_a_changed_header_rebuilds_what_includes_it(project):
    def built() -> dict[str, int]:
        result = _build(project)
        assert result.returncode == 0, result.stdout + result.stderr
        files = [*project.glob("build/cuda-*/cuda/*.o"), project / "udml_kernels" / "_C_cuda.so"]
        return {file.name: file.stat().st_mtime_ns for file in files}

    first = built()
    assert first.keys() >= {"kernel.cu.o", "kernel.cpp.o", "_C_cuda.so"}
    assert built() == first
    (project / "csrc" / "cuda" / "value.h").write_text("#define VALUE 2\n")
    second = built()
    assert {name for name in second if second[name] != first[name]} == {"kernel.cu.o", "_C_cuda.so"}


def test_an_undefined_symbol_fails_the_build(project):
    (project / "csrc" / "cuda" / "kernel.cpp").write_text(
        "int elsewhere();\nint of_the_host() { return elsewhere(); }\n"
    )
    result = _build(project)
    assert result.returncode != 0 and "elsewhere" in result.stdout + result.stderr
    assert "UDML_KERNELS_CUDA=0 leaves the CUDA kernels out" in result.stderr
    assert not (project / "udml_kernels" / "_C_cuda.so").exists()


def test_without_nvcc_the_package_says_so_and_works(project):
    stale = project / "udml_kernels" / "_C_cuda.so"
    stale.write_text("of an earlier build")
    result = _build(project, CUDA_HOME=str(project))
    assert result.returncode == 0 and "without the cuda kernels: no nvcc" in result.stderr, result.stderr
    assert not stale.exists()
    code = """
import torch, udml_kernels
from udml_kernels import backends
print(udml_kernels.__file__, udml_kernels.normal((2,), torch.tensor([1])).shape, backends.why_unavailable("cuda"))"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UDML_KERNELS_")}
    told = _run([sys.executable, "-c", code], cwd=project, env=clean)
    assert told.startswith(f"{project}/") and "torch.Size([2]) not built: no nvcc" in told and "setup-cuda" in told


def test_kernels_that_were_asked_for_and_cannot_be_built_are_an_error(project):
    result = _build(project, CUDA_HOME=str(project), UDML_KERNELS_CUDA="1")
    assert result.returncode != 0 and "UDML_KERNELS_CUDA=1, but no nvcc" in result.stderr
    result = _build(project, UDML_KERNELS_CUDA_ARCHS="90 9x")
    assert result.returncode != 0 and "UDML_KERNELS_CUDA_ARCHS: expected some of" in result.stderr
    assert "got '90 9x'" in result.stderr


def _fake_nvcc(home: Path, release: str) -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n")
    nvcc.chmod(0o755)
    return nvcc


def test_where_nvcc_is_looked_for(tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(build_support, "site_packages", lambda package: [tmp_path / "site"])
    with pytest.raises(CannotBuild, match="neither on PATH nor among the pip packages"):
        find_nvcc()
    toolkit = tmp_path / "site" / "nvidia" / "cu13"
    of_pip = _fake_nvcc(toolkit, "13.0")
    with pytest.raises(CannotBuild, match="lacks nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-runtime, nvidia-cuda-cccl"):
        find_nvcc()
    for file in build_support.PIP_TOOLKIT.values():
        (toolkit / file).mkdir(parents=True)
    assert (find_nvcc().path, find_nvcc().version) == (of_pip, (13, 0))
    assert find_nvcc().link_flags() == [f"-L{toolkit / 'lib'}"]
    old, new = _fake_nvcc(tmp_path / "old", "11.5"), _fake_nvcc(tmp_path / "new", "12.8")
    monkeypatch.setenv("PATH", str(old.parent))
    assert find_nvcc().path == of_pip
    monkeypatch.setenv("PATH", str(new.parent))
    assert (find_nvcc().path, find_nvcc().link_flags()) == (new, [])
    monkeypatch.setenv("CUDA_PATH", str(old.parents[1]))
    with pytest.raises(CannotBuild, match=r"old/bin/nvcc is of CUDA 11\.5, 12\.0 is needed"):
        find_nvcc()
