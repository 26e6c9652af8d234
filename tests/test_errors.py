"""Bad input: ValueError or TypeError of the form `argument: expected <what>, got <what>`, on every backend."""

import math
import re
import warnings

import numpy as np
import pytest
import torch

import udml_kernels
from udml_kernels.testing.ops import OPS

from .backends import BACKENDS

NAN = float("nan")
META = {"device": "meta"}
LONG = 10**400


def _not_dense() -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "sparse": torch.ones(3, 4).to_sparse(),
            "_mkldnn": torch.ones(3, 4).to_mkldnn(),
            "nested": torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]),
            "nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        }


def _ones(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


def _float_rows(argument: str, wrong_shape) -> list[tuple]:
    """What every float tensor argument refuses."""
    return [
        (argument, {argument: "1"}, TypeError, "str"),
        (argument, {argument: _ones(*wrong_shape, dtype=torch.complex64)}, TypeError, "complex64"),
        (argument, {argument: _ones(*wrong_shape)}, ValueError, re.escape(str(tuple(wrong_shape)))),
    ]


def _noise_rows() -> list[tuple]:
    return [
        ("seed", {"seed": 3}, TypeError, "int"),
        ("seed", {"seed": torch.tensor([1], dtype=torch.int32)}, TypeError, "torch.int32"),
        ("seed", {"seed": torch.tensor([1.0])}, TypeError, "torch.float32"),
        ("seed", {"seed": torch.tensor([1, 2])}, ValueError, r"\(2,\)"),
        ("stream", {"stream": -1}, ValueError, "-1"),
        ("stream", {"stream": 2**32}, ValueError, str(2**32)),
        ("stream", {"stream": 1.5}, TypeError, "float"),
        ("stream", {"stream": True}, TypeError, "bool"),
        ("sample_ids", {"sample_ids": torch.arange(4)}, ValueError, r"\(4,\)"),
        ("sample_ids", {"sample_ids": torch.arange(3, dtype=torch.int32)}, TypeError, "torch.int32"),
        ("sample_ids", {"sample_ids": [0, 1, 2]}, TypeError, "list"),
        ("sample_ids", {"sample_ids": torch.arange(3, **META)}, ValueError, "meta"),
    ]


def _feature_rows() -> list[tuple]:
    return [
        ("features", {"features": _ones(3, 4)}, TypeError, "Tensor"),
        ("features", {"features": []}, ValueError, "0"),
        ("features", {"features": [_ones(3, 4)] * 17}, ValueError, "17"),
        ("features[1]", {"features": [_ones(3, 4), None]}, TypeError, "NoneType"),
        ("features[1]", {"features": [_ones(3, 4), _ones(3, 4, dtype=torch.int64)]}, TypeError, "torch.int64"),
        ("features[1]", {"features": [_ones(3, 4), _ones(3, 4, dtype=torch.float64)]}, TypeError, "torch.float64"),
        ("features[1]", {"features": [_ones(3, 4), _ones(2, 4)]}, ValueError, r"\(2, 4\)"),
        ("features[1]", {"features": [_ones(3, 4), _ones(3, 4, device="meta")]}, ValueError, "meta"),
    ]


def _weighting_rows() -> list[tuple]:
    return [
        ("uncertainty", {"uncertainty": 1.0}, TypeError, "float"),
        ("uncertainty", {"uncertainty": _ones(3, 2, dtype=torch.int64)}, TypeError, "torch.int64"),
        ("uncertainty", {"uncertainty": _ones(3)}, ValueError, r"\(3,\)"),
        ("dependency", {"dependency": _ones(3)}, ValueError, r"\(3,\)"),
        ("dependency", {"dependency": _ones(2, 2)}, ValueError, r"\(2, 2\)"),
        ("dependency", {"dependency": _ones(2, dtype=torch.complex64)}, TypeError, "torch.complex64"),
        ("dependency", {"dependency": (1.0, 2.0, 3.0)}, ValueError, r"\(3,\)"),
        ("dependency[1]", {"dependency": (1.0, 0.0)}, ValueError, "0.0"),
        ("dependency[1]", {"dependency": (1.0, "2")}, TypeError, "str"),
        ("dependency", {"dependency": "2"}, TypeError, "str"),
        ("dependency", {"dependency": _ones(2, **META)}, ValueError, "meta"),
        ("mask", {"mask": _ones(3, 2)}, TypeError, "torch.float32"),
        ("mask", {"mask": _ones(3, 3, dtype=torch.bool)}, ValueError, r"\(3, 3\)"),
        ("mask", {"mask": _ones(3, 2, dtype=torch.bool, **META)}, ValueError, "meta"),
        ("g", {"g": "mean"}, ValueError, "'mean'"),
        ("g", {"g": np.ones(3)}, ValueError, "array"),
        ("temperature", {"temperature": torch.ones(2)}, TypeError, r"\(2,\)"),
        ("temperature", {"temperature": torch.ones((), requires_grad=True)}, ValueError, "requires grad"),
        ("temperature", {"temperature": torch.ones((), **META)}, ValueError, "meta"),
        ("total", {"total": LONG}, ValueError, "401 digits"),
        ("temperature", {"temperature": 0.0}, ValueError, "0.0"),
        *[("floor", {"floor": v}, ValueError, str(v)) for v in (-1.0, math.inf, NAN)],
        *[("reference", {"reference": v}, ValueError, str(v)) for v in (0.0, -1.0, math.inf, NAN)],
        ("reference", {"reference": "1"}, TypeError, "str"),
        ("temperature", {"temperature": NAN}, ValueError, "nan"),
        ("temperature", {"temperature": "1"}, TypeError, "str"),
        ("total", {"total": NAN}, ValueError, "nan"),
        ("total", {"total": "1"}, TypeError, "str"),
    ]


BAD = {
    "reparameterize": [
        *_float_rows("mu", (3,)),
        *_float_rows("logvar", (3, 5)),
        ("logvar", {"logvar": _ones(3, 4, dtype=torch.float64)}, TypeError, "torch.float64"),
        ("logvar", {"logvar": _ones(3, 4, **META)}, ValueError, "meta"),
        ("mu", {"mu": _ones(3, 4, dtype=torch.int32)}, TypeError, "torch.int32"),
        *_float_rows("prior_var", (2,)),
        ("prior_var", {"prior_var": _ones(3, 4)}, ValueError, r"\(3, 4\)"),
        ("prior_var", {"prior_var": _ones(3, **META)}, ValueError, "meta"),
        *[("prior_var", {"prior_var": v}, ValueError, str(v)) for v in (0.0, -1.0, NAN)],
        ("prior_var", {"prior_var": torch.tensor([1.0, 0.0, 1.0])}, ValueError, "0.0"),
        ("prior_var", {"prior_var": torch.tensor([1.0, 1.0, NAN])}, ValueError, "nan"),
        ("prior_var", {"prior_var": torch.tensor(1e-39)}, ValueError, "e-39|e-40"),
        *[("std_max", {"std_max": v}, ValueError, str(v)) for v in (0.0, -1.0, NAN)],
        ("std_max", {"std_max": "1"}, TypeError, "str"),
        ("std_max", {"std_max": LONG}, ValueError, "401 digits"),
        ("prior_var", {"prior_var": LONG}, ValueError, "401 digits"),
        ("prior_var", {"prior_var": 1e39}, ValueError, "1e[+]39"),
        ("sample", {"sample": None}, TypeError, "None"),
        ("pool", {"pool": 1}, TypeError, "1"),
        ("pool_std", {"pool_std": None}, TypeError, "None"),
        ("pool_std", {"pool": True, "pool_std": False}, ValueError, "False"),
        *_noise_rows(),
    ],
    "inject_noise": [
        *_float_rows("x", ()),
        ("x", {"x": _ones(3, 4, dtype=torch.int32)}, TypeError, "torch.int32"),
        *_float_rows("sigma", (2,)),
        ("sigma", {"sigma": _ones(3, 2)}, ValueError, r"\(3, 2\)"),
        ("sigma", {"sigma": _ones(3, **META)}, ValueError, "meta"),
        ("sigma", {"sigma": -0.5}, ValueError, "-0.5"),
        ("sigma", {"sigma": LONG}, ValueError, "401 digits"),
        ("sigma", {"sigma": 1e39}, ValueError, "1e[+]39"),
        ("sigma", {"sigma": NAN}, ValueError, "nan"),
        ("sigma", {"sigma": torch.tensor([0.0, -1.0, 1.0])}, ValueError, "-1.0"),
        ("sigma", {"sigma": 1.5, "kind": "dropout"}, ValueError, "1.5"),
        ("sigma", {"sigma": NAN, "kind": "dropout"}, ValueError, "nan"),
        ("sigma", {"sigma": 1.5, "kind": "salt_pepper", "clamp": (0.0, 1.0)}, ValueError, "1.5"),
        ("sigma", {"sigma": 1.5, "kind": torch.tensor([0, 4, 0])}, ValueError, "1.5"),
        ("sigma", {"sigma": torch.tensor([0.0, NAN, 0.0]), "kind": torch.tensor([0, 4, 0])}, ValueError, "nan"),
        ("kind", {"kind": "pink"}, ValueError, "'pink'"),
        ("kind", {"kind": 3}, TypeError, "int"),
        ("kind", {"kind": _ones(3)}, TypeError, "torch.float32"),
        ("kind", {"kind": torch.zeros(2, dtype=torch.int64)}, ValueError, r"\(2,\)"),
        ("kind", {"kind": torch.tensor([0, 6, 0])}, ValueError, "6"),
        ("kind", {"kind": torch.tensor([0, -1, 0])}, ValueError, "-1"),
        ("clamp", {"kind": "salt_pepper"}, ValueError, "None"),
        ("clamp", {"kind": torch.tensor([0, 3, 0])}, ValueError, "None"),
        ("clamp", {"clamp": 1.0}, TypeError, "1.0"),
        ("kind", {"kind": torch.zeros(3, dtype=torch.uint16)}, TypeError, "torch.uint16"),
        ("kind", {"kind": torch.zeros(3, dtype=torch.complex128)}, TypeError, "torch.complex128"),
        ("kind", {"kind": np.zeros(3)}, TypeError, "ndarray"),
        ("clamp[0]", {"clamp": (NAN, 1.0)}, ValueError, "nan"),
        ("clamp[1]", {"clamp": (0.0, LONG)}, ValueError, "401 digits"),
        *[("normalize, the mean", {"normalize": (1.0, bad, 1.0)}, error, got) for bad, error, got in (
            ("a", TypeError, "str"), (None, TypeError, "NoneType"), ([[1.0], [1.0, 2.0]], TypeError, "list"),
            (_ones(2, **META), ValueError, "meta"), (_ones(1, 2), ValueError, r"\(1, 2\)"), (LONG, ValueError, "401"))],
        ("clamp[1]", {"clamp": (0.0, NAN)}, ValueError, "nan"),
        ("clamp[1]", {"clamp": (1.0, 0.0)}, ValueError, "0.0"),
        ("normalize", {"normalize": (1.0, 0.0)}, TypeError, r"\(1.0, 0.0\)"),
        ("normalize", {"normalize": (0.0, 0.0, 1.0)}, ValueError, "0.0"),
        ("normalize", {"normalize": (1.0, [0.0] * 3, 1.0)}, ValueError, "3 values"),
        ("normalize", {"normalize": (1.0, 0.0, [1.0, 0.0])}, ValueError, "0.0"),
        ("x", {"x": _ones(3), "normalize": (1.0, 0.0, 1.0)}, ValueError, r"\(3,\)"),
        ("out_dtype", {"out_dtype": torch.int32}, TypeError, "torch.int32"),
        *_noise_rows(),
        ("seed", {"seed": torch.tensor([1], **META)}, ValueError, "meta"),
    ],
    "noise_regression": [
        *_float_rows("std", (3,)),
        *_float_rows("weight1", (6, 3)),
        *_float_rows("bias1", (4,)),
        *_float_rows("weight2", (1, 4)),
        *_float_rows("bias2", (2,)),
        *_float_rows("target", (4,)),
        *[(name, {name: value}, ValueError, "meta") for name, value in {
            "weight1": _ones(6, 4, **META), "bias1": _ones(6, **META), "target": _ones(3, **META)}.items()],
        ("weight1", {"std": _ones(2, 3, 4)}, ValueError, r"\(6, 4\)"),
        ("activation", {"activation": "tanh"}, ValueError, "'tanh'"),
        *[("dropout_p", {"dropout_p": v}, ValueError, str(v)) for v in (-0.1, 1.1, NAN)],
        ("dropout_p", {"dropout_p": "0"}, TypeError, "str"),
        *_noise_rows(),
    ],
    "fusion_weights": [*_weighting_rows(), ("uncertainty", {"uncertainty": _ones(3, 17)}, ValueError, "17")],
    "weighted_fusion": [
        *_feature_rows(),
        *_weighting_rows(),
        ("residual", {"residual": "False"}, TypeError, "'False'"),
        ("uncertainty", {"uncertainty": _ones(3, 3)}, ValueError, r"\(3, 3\)"),
        ("uncertainty", {"uncertainty": _ones(2, 2)}, ValueError, r"\(2, 2\)"),
        ("uncertainty", {"uncertainty": _ones(3, 2, **META)}, ValueError, "meta"),
        ("features[0]", {"uncertainty": _ones(3, 2, 7)}, ValueError, r"\(3, 4\)"),
        ("features[0]", {"features": [_ones(3), _ones(3)]}, ValueError, r"\(3,\)"),
        ("features[1]", {"features": [_ones(3, 4), _ones(3, 5)], "mode": "sum"}, ValueError, r"\(3, 5\)"),
        ("features[1]", {"features": [_ones(3, 4, 2), _ones(3, 4, 3)]}, ValueError, r"\(3, 4, 3\)"),
        ("mode", {"mode": "mean"}, ValueError, "'mean'"),
    ],
    "modality_dropout": [
        *_feature_rows(),
        *[("p", {"p": v}, ValueError, str(v)) for v in (-0.1, 1.1, NAN)],
        *[("p", {"p": torch.tensor([0.5, v])}, ValueError, str(v)) for v in (-0.5, 1.5, NAN)],
        ("p", {"p": _ones(3)}, ValueError, r"\(3,\)"),
        ("p", {"p": _ones(2, **META)}, ValueError, "meta"),
        ("p", {"p": torch.tensor([0, 1])}, TypeError, "torch.int64"),
        ("p", {"p": "0"}, TypeError, "str"),
        ("keep_one", {"keep_one": "no"}, TypeError, "'no'"),
        *_noise_rows(),
        ("seed", {"seed": torch.tensor([1], **META)}, ValueError, "meta"),
    ],
    "modality_dependency": [
        *_float_rows("logits", (2, 3)),
        ("logits", {"logits": _ones(17, 3, 4)}, ValueError, "17"),
        ("logits", {"logits": _ones(0, 3, 4)}, ValueError, "0"),
    ],
    "evidential_fusion": [
        *_float_rows("evidence", (3, 2)),
        ("evidence", {"evidence": _ones(3, 17, 4)}, ValueError, "17"),
        ("evidence", {"evidence": _ones(3, 2, 0)}, ValueError, "0"),
        ("mask", {"mask": _ones(3, 2)}, TypeError, "torch.float32"),
        ("mask", {"mask": _ones(3, 3, dtype=torch.bool)}, ValueError, r"\(3, 3\)"),
        ("mask", {"mask": _ones(3, 2, dtype=torch.bool, **META)}, ValueError, "meta"),
    ],
    "evidential_loss": [
        *_float_rows("evidence", (3,)),
        ("evidence", {"evidence": _ones(3, 0)}, ValueError, "0"),
        ("target", {"target": _ones(3)}, TypeError, "torch.float32"),
        ("target", {"target": [0, 1, 2]}, TypeError, "list"),
        ("target", {"target": torch.zeros(4, dtype=torch.int64)}, ValueError, r"\(4,\)"),
        ("target", {"target": torch.tensor([0, 6, 0])}, ValueError, "6"),
        ("target", {"target": torch.tensor([0, -1, 0])}, ValueError, "-1"),
        ("target", {"target": torch.zeros(3, dtype=torch.int64, **META)}, ValueError, "meta"),
        ("kl_weight", {"kl_weight": NAN}, ValueError, "nan"),
        ("kl_weight", {"kl_weight": "1"}, TypeError, "str"),
        ("kl_weight", {"kl_weight": LONG}, ValueError, "401 digits"),
        ("reduction", {"reduction": "max"}, ValueError, "'max'"),
    ],
    "normal": [
        ("shape", {"shape": ()}, ValueError, r"\(\)"),
        ("shape", {"shape": (3, -1)}, ValueError, "-1"),
        *[("shape", {"shape": v}, TypeError, got) for v, got in (
            (5, "5"), (None, "None"), ("ab", "'ab'"), ((2, 3.5), r"\(2, 3.5\)"), ((True, 3), "True"))],
        ("dtype", {"dtype": torch.int32}, TypeError, "torch.int32"),
        *_noise_rows(),
    ],
}  # fmt: skip
BAD["uniform"] = BAD["normal"]
ROWS = [(op, *row) for op, rows in BAD.items() for row in rows]


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize("op", BAD)
def test_good_arguments_are_accepted(op, backend):
    with udml_kernels.use_backend(backend):
        getattr(udml_kernels, op)(**OPS[op].base())


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
@pytest.mark.parametrize(
    ("op", "argument", "bad", "error", "got"), ROWS, ids=[f"{op}-{arg}-{i}" for i, (op, arg, *_) in enumerate(ROWS)]
)
def test_bad_input(op, argument, bad, error, got, backend):
    with udml_kernels.use_backend(backend), pytest.raises((ValueError, TypeError)) as caught:
        getattr(udml_kernels, op)(**{**OPS[op].base(), **bad})
    assert caught.type is error, caught.value
    message = str(caught.value)
    assert re.match(rf"{re.escape(argument)}[^:]*: expected .+, got .*(?:{got})", message), message


@pytest.mark.parametrize(("op", "argument"), [
    ("reparameterize", "mu"), ("reparameterize", "logvar"), ("inject_noise", "x"), ("noise_regression", "weight1"),
    ("fusion_weights", "uncertainty"), ("modality_dependency", "logits"), ("evidential_loss", "evidence"),
])  # fmt: skip
@pytest.mark.parametrize("kind", _not_dense())
def test_tensors_that_are_not_dense(op, argument, kind):
    with pytest.raises(TypeError, match=rf"^{argument}: expected a dense tensor .+, got .*{kind}"):
        getattr(udml_kernels, op)(**{**OPS[op].base(), argument: _not_dense()[kind]})


@pytest.mark.parametrize("backend", (*BACKENDS, "reference"))
def test_integers_are_numbers(backend):
    """Noise levels are integers in practice, and the authors' dependency is a pair of numbers."""
    levels, counts = torch.tensor([1, 2, 3]), torch.tensor([32, 10])
    with udml_kernels.use_backend(backend):
        for op, argument, given, same in (
            ("reparameterize", "prior_var", levels, levels.float()),
            ("reparameterize", "prior_var", torch.tensor(2), 2.0),
            ("inject_noise", "sigma", levels, levels.float()),
            ("inject_noise", "sigma", 2, 2.0),
            ("fusion_weights", "dependency", counts, counts.float()),
            ("fusion_weights", "dependency", (32, 10.0), counts.float()),
            ("weighted_fusion", "dependency", [32.0, 10.0], counts.float()),
            ("fusion_weights", "temperature", torch.tensor(2), 2.0),
            ("evidential_loss", "kl_weight", torch.tensor(0.5), 0.5),
            ("noise_regression", "dropout_p", torch.tensor([0.25]), 0.25),
        ):
            one, other = (getattr(udml_kernels, op)(**{**OPS[op].base(), argument: v}) for v in (given, same))
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_seed_is_required_under_compile():
    compiled = torch.compile(lambda x: udml_kernels.inject_noise(x, 1.0), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="draw_seed"):
        compiled(_ones(3, 4))
