"""What `aot` compiles: every kernel op at shapes that occur in models, on uninitialised tensors that are never read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import checks
from .steps import tensors


@dataclass
class Work:
    """A call of one kernel op.

    Attributes:
        op: its schema name; `file` is the module that holds its launcher in each backend.
        args: the schema's arguments.
        elements: the number that "per element" refers to.
        trips: kernel -> how often its loops run, 1 where nothing is given. For a Triton kernel, whose name begins with
            an underscore, outermost loop first. For a CUDA kernel in the order in which the loops begin, those over the
            launch's tiles first; with one tuple per launch where it is launched more than once.
    """

    label: str
    file: str
    op: str
    args: Sequence[Any]
    elements: int
    trips: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def bytes(self, results: object) -> int:
        """Bytes that an ideal implementation moves: every input read once, every result written once."""
        return sum(t.numel() * t.element_size() for t in tensors((self.args, results)))


def _label(op: str, *shape: int, note: str = "") -> str:
    return " ".join(filter(None, (op, "x".join(map(str, shape)), note)))


class _Maker:
    """Makes the tensors of works of one dtype."""

    def __init__(self, dtype: torch.dtype):
        self.dtype, self.wide = dtype, checks.compute_dtype(dtype)
        self.seed = torch.empty(1, dtype=torch.int64)

    def __call__(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype)

    def wider(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.wide)


def _random(of: _Maker) -> Iterator[Work]:
    for op in ("normal", "uniform"):
        yield Work(_label(op, 64, 65536), "random", op, ((64, 65536), of.seed, 0, None, of.dtype), 64 * 65536)


def _noise(of: _Maker) -> Iterator[Work]:
    shape = (64, 3, 128, 128)
    count, moments = 64 * 3 * 128 * 128, (of.wider(3), of.wider(3))
    plain: Sequence[Any] = (of(*shape), of.wider(64), None, 0, [], 1.0, None, None, of.dtype, of.seed, 1, None)
    image = (of(*shape), of.wider(64), None, 0, [0.0, 1.0], 1.0, *moments, of.dtype, of.seed, 1, None)
    mixed = (of(*shape), of.wider(64), torch.empty(64, dtype=torch.int64), -1, *image[4:])
    for note, args in (("gaussian", plain), ("clamped, normalised", image), ("mixed kinds, normalised", mixed)):
        yield Work(_label("inject_noise", *shape, note=note), "noise", "inject_noise", args, count)
        backward = (of(*shape), *args, True, True)
        yield Work(_label("inject_noise_backward", note=note), "noise", "inject_noise_backward", backward, count)
    if of.dtype == torch.float32:
        pixels = (torch.empty(shape, dtype=torch.uint8), *image[1:])
        yield Work(_label("inject_noise", *shape, note="uint8 image"), "noise", "inject_noise", pixels, count)


def _reparameterize(of: _Maker) -> Iterator[Work]:
    for shape in ((4096, 512), (64, 512, 7, 7), (64, 512, 14, 14), (8, 256, 60, 80)):
        args = (of(*shape), of(*shape), of.wider(shape[0]), None, True, of.seed, 2, None)
        count = args[0].numel()
        # 2 threads add up a channel of 49 elements, four at a time.
        trips = {"reparameterize_kernel": (1, 1, 1, 6, 1)} if shape[2:] == (7, 7) else {}
        yield Work(_label("reparameterize", *shape), "reparameterize", "reparameterize", args, count, trips)
        backward = (of(*shape), of.wider(*shape[:2]), of.wider(shape[0]), *args, False)
        op = "reparameterize_backward"
        yield Work(_label(op, *shape), "reparameterize", op, backward, count)


def _noise_regression(of: _Maker) -> Iterator[Work]:
    groups, batch, width, hidden = 2, 64, 512, 256
    for p in (0.0, 0.1):
        target, noise = of.wider(groups, batch, 1), of(groups, batch, 1)
        weights = (of(groups, hidden, width), of(groups, hidden), of(groups, 1, hidden), of(groups, 1))
        args = (of(groups, batch, width), *weights, target, 0, p, of.seed if p else None, 3, None)
        count = groups * batch * width
        label = _label("noise_regression", groups, batch, width, hidden, note=f"dropout {p}")
        # 16 terms at a time; the CUDA loop begins with an iteration that only loads.
        trips: dict[str, Sequence[Any]] = {"_layers_kernel": (width // 16,), "_hidden_kernel": (width // 16,)}
        for kernel in ("layers", "hidden_gradient"):
            trips[f"noise_regression_{kernel}_kernel"] = (1, 1, width // 16 + 1)
        trips["noise_regression_product_kernel"] = ((1, 1, hidden // 16 + 1), (1, 1, batch // 16 + 1))
        yield Work(label, "noise_regression", "noise_regression", args, count, trips)
        backward = (noise, of.wider(), *args, target, 31)
        op = "noise_regression_backward"
        yield Work(_label(op, note=f"dropout {p}"), "noise_regression", op, backward, count, trips)


def _fusion(of: _Maker) -> Iterator[Work]:
    s, a = of.wider(4096, 4), of.wider(4)
    yield Work(_label("fusion_weights", 4096, 4), "fusion", "fusion_weights", (s, a, None, 0, 1.0, None), s.numel())
    backward = (s, s, a, None, 0, 1.0, None, True)
    yield Work(_label("fusion_weights_backward", 4096, 4), "fusion", "fusion_weights_backward", backward, s.numel())
    for note, batch, shape, weights, modalities in (
        ("features", 4096, (512,), (), 2),
        ("maps", 64, (512, 7, 7), (), 2),
        ("16 modalities", 1024, (256,), (), 16),
        ("per location", 8, (256, 60, 80), (60, 80), 2),
    ):
        # Weights per location: 64 of the 256 channels at a time.
        trips = {"_unfuse_kernel": (4,)} if weights else {}
        features = [of(batch, *shape) for _ in range(modalities)]
        s, count = of.wider(batch, modalities, *weights), modalities * features[0].numel()
        args = (features, s, None, None, 0, False, 0, 1.0, None)
        label = _label("weighted_fusion", batch, *shape, note=note)
        yield Work(label, "fusion", "weighted_fusion", args, count)
        grads = ([of(batch, modalities * shape[0], *shape[1:])], s, *args, False)
        op = "weighted_fusion_backward"
        yield Work(_label(op, note=note), "fusion", op, grads, count, trips)


def _modality_dropout(of: _Maker) -> Iterator[Work]:
    features = [of(4096, 512) for _ in range(2)]
    args = (features, torch.empty(2), True, of.seed, 4, None)
    label = _label("modality_dropout", 4096, 512, note="2 modalities")
    yield Work(label, "modality_dropout", "modality_dropout", args, 2 * features[0].numel())
    logits = of(3, 4096, 34)
    op = "modality_dependency"
    yield Work(_label(op, *logits.shape), "modality_dropout", op, (logits,), logits.numel())
    op = "modality_dependency_backward"
    yield Work(_label(op, *logits.shape), "modality_dropout", op, (of.wider(3), logits), logits.numel())


def _evidential(of: _Maker) -> Iterator[Work]:
    evidence, fused = of(4096, 3, 34), of(4096, 34)
    target = torch.empty(4096, dtype=torch.int64)
    for op, shape, args in (
        ("evidential_fusion", evidence.shape, (evidence, None)),
        ("evidential_fusion_backward", evidence.shape, (fused, evidence, None)),
        ("evidential_loss", fused.shape, (fused, target, 0.5, 1)),
        ("evidential_loss_backward", fused.shape, (of.wider(), fused, target, 0.5, 1)),
    ):
        # Triton takes 8 classes at a time; CUDA loops over the views and over 32 classes at a time.
        trips: dict[str, Sequence[float]] = {"_loss_kernel": (5,), "_loss_backward_kernel": (5,)}
        trips |= {"evidential_fusion_kernel": (1, 3), "evidential_fusion_backward_kernel": (1, 3)}
        trips |= {"evidential_loss_kernel": (1, 2), "evidential_loss_backward_kernel": (1, 2, 2)}
        yield Work(_label(op, *shape), "evidential", op, args, shape.numel(), trips)


MAKERS: dict[str, Callable[[_Maker], Iterator[Work]]] = {
    "normal": _random,
    "inject_noise": _noise,
    "reparameterize": _reparameterize,
    "noise_regression": _noise_regression,
    "weighted_fusion": _fusion,
    "modality_dropout": _modality_dropout,
    "evidential": _evidential,
}


def works(ops: Sequence[str], dtype: torch.dtype) -> Iterator[Work]:
    for op in ops:
        yield from MAKERS[op](_Maker(dtype))
