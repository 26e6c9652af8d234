"""Which backend serves a call: defaults, use_backend, the environment, errors."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import udml_kernels
from udml_kernels import backends

from .backends import BACKENDS, OPS

SEED = torch.tensor([5])


def _run(code: str, **environment) -> subprocess.CompletedProcess:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("UDML_KERNELS_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_listed_backend_is_available(backend):
    assert backends.why_unavailable(backend) is None
    assert backend in backends.available()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
def test_the_chosen_backend_serves_the_call(backend, monkeypatch):
    served, overload = [], OPS["normal"].overloads[backend]
    monkeypatch.setitem(OPS["normal"].overloads, backend, lambda *a: served.append(backend) or overload(*a))
    with udml_kernels.use_backend(backend):
        udml_kernels.normal((2, 3), SEED)
    with udml_kernels.use_backend("reference"):
        udml_kernels.normal((2, 3), SEED)
    assert served == [backend]


def test_the_reference_is_always_available():
    assert backends.available()[0] == "reference"


def test_cpu_tensors_go_to_the_cpu_column(monkeypatch):
    monkeypatch.setattr(backends, "_forced", None)
    assert backends.select(torch.device("cpu")) == ("cpu" if backends.why_unavailable("cpu") is None else "reference")


def test_a_device_without_kernels_gets_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "_forced", None)
    for column in backends.KERNEL_BACKENDS:
        monkeypatch.setitem(backends._unavailable, column, "for this test")
    assert backends.select(torch.device("cpu")) == "reference"
    assert backends.available() == ("reference",)


def test_use_backend_nests_and_is_undone_by_an_exception():
    def chosen() -> str:
        return backends.select(torch.device("cpu"))

    outside = chosen()
    with udml_kernels.use_backend("reference"):
        with pytest.raises(KeyError), udml_kernels.use_backend(BACKENDS[0]):
            assert chosen() == BACKENDS[0]
            raise KeyError
        assert chosen() == "reference"
    assert chosen() == outside


def test_use_backend_is_thread_local():
    seen = []
    with udml_kernels.use_backend("reference"):
        other = threading.Thread(target=lambda: seen.append(backends._override.backend))
        other.start()
        other.join()
        assert backends.select(torch.device("cpu")) == "reference"
    assert seen == [None]


def test_backward_in_autograds_threads_keeps_the_forwards_backend():
    x = torch.ones(2, 3, requires_grad=True)
    with udml_kernels.use_backend(BACKENDS[0]):
        z, _, _ = udml_kernels.reparameterize(x, torch.zeros(2, 3), seed=SEED)
    with udml_kernels.use_backend("reference"):
        z.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_why_triton_cannot_serve(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    monkeypatch.setattr(backends, "_triton_interpreted", False)
    monkeypatch.setattr(backends, "has_gpu", lambda: True)
    monkeypatch.setattr(backends, "_triton_version", lambda: "3.5.1")
    assert "triton 3.5.1 is too old, 3.6 or newer" in backends._load_triton()
    # Packages of other names carry it too, and some carry no version.
    for version in ("3.6.0", "3.7.0+git123", "4.0", None):
        monkeypatch.setattr(backends, "_triton_version", lambda version=version: version)
        monkeypatch.setattr(backends.shutil, "which", lambda name: "/usr/bin/gcc")
        assert backends._load_triton() is None
        monkeypatch.setattr(backends.shutil, "which", lambda name: None)
        assert "no C compiler" in backends._load_triton()
    monkeypatch.setattr(backends, "has_gpu", lambda: False)
    assert "TRITON_INTERPRET=1" in backends._load_triton()
    monkeypatch.setattr(backends, "_triton_interpreted", True)
    assert backends._load_triton() is None


def test_why_cuda_cannot_serve(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backends, "_PACKAGE", tmp_path)
    monkeypatch.setattr(backends, "CUDA_LIBRARY", tmp_path / "_C_cuda.so")
    assert backends._load_cuda() == "not built: the package was not installed"
    (tmp_path / "_not_built_cuda.txt").write_text("no nvcc\n")
    assert backends._load_cuda() == "not built: no nvcc"
    (tmp_path / "_C_cuda.so").write_text("no library")
    assert "_C_cuda.so failed to load" in backends._load_cuda()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in backends._load_cuda()


def test_what_the_cuda_kernels_were_built_for_decides_where_they_run():
    codes = "sm_80 sm_90 sm_100 compute_100 sm_120"
    runs = {(8, 0): "sm_80", (8, 6): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    runs |= {(7, 5): None, (11, 0): "compute_100", (12, 0): "sm_120", (12, 1): "sm_120", (13, 0): "compute_100"}
    assert {c: backends._code_for(codes, c) for c in runs} == runs
    # Machine code where there is some, whatever stands before it.
    assert backends._code_for("compute_80 sm_80", (8, 6)) == "sm_80"
    assert backends._code_for("sm_86", (8, 9)) == "sm_86" and backends._code_for("sm_86", (8, 0)) is None
    assert backends._code_for("sm_80 sm_90", (10, 0)) is None


def test_a_cuda_device_that_is_too_old_is_served_by_triton(cuda_devices):
    cuda_devices += [(7, 5), (9, 0)]
    assert [backends.select(torch.device("cuda", i)) for i in range(2)] == ["triton", "cuda"]
    assert backends.select(torch.device("cuda")) == "triton"
    reason = "cuda:0 has compute capability 7.5, the kernels were built for sm_80, compute_80"
    assert backends.why_unavailable("cuda", torch.device("cuda", 0)) == reason
    with udml_kernels.use_backend("cuda"), pytest.raises(RuntimeError, match=reason):
        backends.select(torch.device("cuda", 0))


@pytest.mark.parametrize(
    "built, driver, machine_code, ptx",
    [
        ("13.1", (12, 8), "triton", "triton"),
        # A driver of the same major version loads machine code of a newer toolkit, but does not know its PTX.
        ("13.1", (13, 0), "cuda", "triton"),
        ("13.1", (13, 1), "cuda", "cuda"),
        ("12.9", (13, 0), "cuda", "cuda"),
        ("13.1", None, "cuda", "cuda"),
    ],
)
def test_a_driver_that_is_too_old_for_the_kernels(built, driver, machine_code, ptx, cuda_devices, monkeypatch):
    cuda_devices += [(8, 6), (9, 0)]
    monkeypatch.setitem(backends.cuda_facts, "cuda", built)
    monkeypatch.setattr(backends, "_driver_version", lambda: driver)
    assert [backends.select(torch.device("cuda", i)) for i in range(2)] == [machine_code, ptx]
    if driver == (13, 0) and ptx == "triton":
        reason = "built with CUDA 13.1, the driver runs 13.0 at most; it cannot compile compute_80 for cuda:1"
        assert reason in backends.why_unavailable("cuda", torch.device("cuda", 1))


def test_a_cuda_device_is_asked_while_torch_compile_traces(cuda_devices):
    cuda_devices += [(7, 5), (9, 0)]

    @torch.compile(fullgraph=True, backend="eager")
    def served(x):
        return [x + (backends.select(torch.device("cuda", i)) == "cuda") for i in range(2)]

    assert torch.stack(served(torch.zeros(()))).tolist() == [0, 1]


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"backend: expected one of reference, cpu, cuda, triton, got 'gpu'"):
        udml_kernels.use_backend("gpu").__enter__()


@pytest.mark.parametrize("column", backends.KERNEL_BACKENDS)
def test_an_unavailable_backend_says_why(column, monkeypatch):
    monkeypatch.setitem(backends._unavailable, column, "the reason")
    with pytest.raises(RuntimeError, match=f"{column}.*the reason"), udml_kernels.use_backend(column):
        pass
    assert backends._override.backend is None


def test_the_environment_chooses_and_use_backend_overrides_it(monkeypatch):
    result = _run("from udml_kernels import backends; print(backends._forced)", UDML_KERNELS_BACKEND="reference")
    assert result.stdout.strip() == "reference", result.stderr
    monkeypatch.setattr(backends, "_forced", "reference")
    assert backends.select(torch.device("cpu")) == "reference"
    with udml_kernels.use_backend(BACKENDS[0]):
        assert backends.select(torch.device("cpu")) == BACKENDS[0]


def test_a_wrong_environment_fails_at_import():
    result = _run("import udml_kernels", UDML_KERNELS_BACKEND="gpu")
    assert result.returncode and "UDML_KERNELS_BACKEND: expected one of" in result.stderr
    result = _run("import udml_kernels", UDML_KERNELS_ISA="avx1024")
    assert result.returncode and "UDML_KERNELS_ISA: expected one of" in result.stderr


@pytest.mark.parametrize("level", backends.supported_isa_levels())
def test_the_environment_chooses_the_isa_level(level):
    result = _run("from udml_kernels import backends; print(backends.isa_level)", UDML_KERNELS_ISA=level)
    assert result.stdout.strip() == level, result.stderr


def test_tensors_elsewhere_are_refused_by_a_backend_of_one_device():
    with udml_kernels.use_backend("cpu"), pytest.raises(ValueError, match="'cpu' cannot serve tensors on meta"):
        udml_kernels.modality_dependency(torch.zeros(2, 3, 4, device="meta"))


def test_everything_public_is_named():
    for name in udml_kernels.__all__:
        assert hasattr(udml_kernels, name), name
    for name in udml_kernels.reference.__all__:
        assert name in udml_kernels.__all__, name
