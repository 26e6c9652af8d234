"""Training, resuming, several processes, evaluation and the command line. Needs the train extra."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from udml import __main__ as command
from udml.data import Batch, DataSpec, MultimodalData, TensorSet
from udml.layers import Noise
from udml.models import METHODS, build_model
from udml.schedule import PHASES
from udml.training import TrainConfig, evaluate, load_model, train
from udml.training.folder import read_checkpoint, write_atomically
from udml.training.loaders import EpochBatches, Stripes
from udml.training.module import TrainingModule
from udml.training.randomness import mixed_sigma, step_seeds

import udml_kernels

SIZES = {"train": 98, "validation": 40, "test": 40}
TINY = TrainConfig(epochs=6, batch_size=32, width=8, device="cpu")
# float32 sums in another order; measured: 2e-7 in the first epoch, 5e-7 after six.
RANKS_BOUND = 5e-6


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Encoder(nn.Sequential):
    def __init__(self, features: int, width: int, dropout: float = 0.0):
        super().__init__(nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout))
        self.out_features = width


def make_data(unit: float = 0.25, dropout: float = 0.0, names=("ear", "eye")) -> MultimodalData:
    """Three classes that either of two modalities tells apart."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(len(names), 3, 5, generator=generator)
    splits, start = {}, 0
    for split, size in SIZES.items():
        target = torch.arange(size) % 3
        inputs = {n: c[target] + torch.randn(size, 5, generator=generator) for n, c in zip(names, centres, strict=True)}
        splits[split] = TensorSet(Batch(inputs, target, torch.arange(start, start + size)))
        start += size
    spec = DataSpec("tiny", names, ("a", "b", "c"), "classification", dict.fromkeys(names, Noise(unit)))
    return MultimodalData(spec, *splits.values(), lambda width: {n: Encoder(5, width, dropout) for n in names})


class Convolution(nn.Conv2d):
    """uint8 or float images to (B, width, h / 2, w / 2)."""

    def __init__(self, channels: int, width: int):
        super().__init__(channels, width, 2, 2)
        self.out_features = width


def make_scenes() -> MultimodalData:
    """Segmentation of uint8 images and depth maps; one pixel in ten has no class."""
    generator = torch.Generator().manual_seed(2)
    splits = []
    for start, size in ((0, 12), (12, 6), (18, 6)):
        target = torch.randint(0, 2, (size, 4, 4), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
        rgb = (100 * target[:, None] + torch.randint(0, 100, (size, 3, 8, 8), generator=generator)).to(torch.uint8)
        depth = target[:, None] + torch.randn(size, 1, 8, 8, generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.1] = 255
        splits.append(TensorSet(Batch({"rgb": rgb, "depth": depth}, target, torch.arange(start, start + size))))
    noise = {"rgb": Noise(1.0, 2.0, clamp=(0, 255), normalize=(255, 0.5, 0.25)), "depth": Noise(0.25)}
    spec = DataSpec("scenes", ("rgb", "depth"), ("wall", "floor"), "segmentation", noise)
    return MultimodalData(spec, *splits, lambda width: {"rgb": Convolution(3, width), "depth": Convolution(1, width)})


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_data()


class Stop(Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, module, outputs, batch, step):
        if trainer.current_epoch == self.epoch and step == 1:
            raise KeyError("stopped")


def assert_same(first, second, where: str = "") -> None:
    """Bit for bit, through dictionaries and lists."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert list(first) == list(second), where
        for name in first:
            assert_same(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second), where
    else:
        assert first == second or first != first, where


def read_rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# The run


def test_a_run_is_recorded_and_selected_on_the_validation_split(data, tmp_path):
    result = train(replace(TINY, out=tmp_path / "run"), data, progress=False)
    assert [row["phase"] for row in result.history] == ["clean"] * 2 + ["noisy"] * 2 + ["weighted"] * 2
    for row in result.history:
        assert row["learning_rate"] == TINY.schedule.learning_rate(TINY.learning_rate, row["epoch"])
        terms = [value for name, value in row.items() if name.startswith("loss_")]
        assert sum(terms) == pytest.approx(row["loss"], rel=1e-5)
        assert ("noise_rmse" in row) == ("loss_noise" in row) == (row["phase"] != "clean")
        assert {"accuracy", "weight_ear", "weight_eye", "alpha_ear", "alpha_eye", "validation_accuracy"} <= set(row)
        assert (row["weight_ear"] == 1) == (row["phase"] != "weighted")
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {k: str(v) for k, v in row.items()} for row in result.history
    ]
    # What was selected is the best, the later of equals, and evaluation gives the very same score.
    for phase, epoch in result.selected.items():
        scores = {r["epoch"]: r["validation_accuracy"] for r in result.history if r["phase"] == phase}
        assert epoch == max(scores, key=lambda e: (scores[e], e)) and result.scores[phase] == scores[epoch]
        model = load_model(tmp_path / "run" / "best.ckpt", data)
        model.load_state_dict(result.best[phase])
        level = 0.0 if phase == "clean" else "mix"
        again = evaluate(model, data.validation, data.spec, level, weighting=phase == "weighted", batch_size=7)
        assert again.score == result.scores[phase]
    assert_same(dict(result.model.state_dict()), dict(result.best["weighted"]))
    assert result.history[-1]["loss_task"] < result.history[2]["loss_task"]


def test_tensorboard_holds_every_epoch(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(replace(TINY, out=tmp_path), data, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for name in ("loss", "loss_kl", "accuracy", "weight_ear", "alpha_eye", "validation_accuracy"):
        assert [e.step for e in events.Scalars(name)] == list(range(6))
        assert [e.value for e in events.Scalars(name)] == pytest.approx([row[name] for row in result.history])


def test_clean_training_never_meets_noise():
    def losses(method: str, unit: float) -> list[float]:
        config = replace(TINY, method=method, epochs=3)
        return [row["loss"] for row in train(config, make_data(unit), progress=False).history]

    assert losses("static-clean", 0.25) == losses("static-clean", 5.0)
    quiet, loud = losses("static", 0.25), losses("static", 5.0)
    assert quiet[0] == loud[0] and quiet[1] != loud[1]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(data, method):
    result = train(replace(TINY, method=method, learning_rate=2e-2), data, progress=False)
    assert evaluate(result.model, data.test, data.spec).score > 0.6


def test_the_authors_preset_trains_at_their_levels(data):
    result = train(replace(TINY, preset="authors", epochs=3), data, progress=False)
    # Their term for the KL, and weights about 1 before they fall apart.
    assert result.model.settings.levels and 0 < result.history[-1]["loss_kl"] < 1e-2


def test_torchs_generator_is_left_alone(data):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = train(replace(TINY, epochs=3), data, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = train(replace(TINY, epochs=3), data, progress=False)
    assert_same(first.history, second.history)
    other = train(replace(TINY, epochs=3, seed=1), data, progress=False)
    assert other.history[0]["loss"] != first.history[0]["loss"]


def test_segmentation_of_uint8_images():
    scenes = make_scenes()
    config = TrainConfig(epochs=6, batch_size=4, width=8, learning_rate=2e-2, device="cpu")
    result = train(config, scenes, progress=False)
    assert result.history[-1]["validation_iou"] > 0.5
    answer = evaluate(result.model, scenes.test, scenes.spec, "mix", weighting=True, batch_size=4)
    assert answer.logits is None and answer.weights.shape == answer.noise.shape == (6, 2)


def test_clean_images_are_normalised():
    scenes, seen = make_scenes(), []
    result = train(TrainConfig(epochs=3, batch_size=4, width=8, device="cpu"), scenes, progress=False)
    result.model.encoders["rgb"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evaluate(result.model, scenes.test, scenes.spec, 0.0)
    expected = (scenes.test.batch.inputs["rgb"].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(seen[0], expected)


# The step


FETCHES = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)


class NoFetch(TorchDispatchMode):
    """Fails where a value leaves the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.overloadpacket not in FETCHES, "a value was fetched"
        return function(*args, **kwargs or {})


@pytest.fixture
def no_fetch(monkeypatch) -> NoFetch:
    # As on an accelerator, where the ops' argument checks read no values.
    monkeypatch.setattr(udml_kernels.checks, "readable", lambda value: False)
    return NoFetch()


def make_step(data, method: str, phase: int = 2) -> TrainingModule:
    model = build_model(method, data.encoders(8), len(data.spec.classes), task=data.spec.task)
    module = TrainingModule(model, data.spec, TINY)
    module.phase, module.seeds = PHASES[phase], step_seeds(0, 0, 4)
    return module


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_fetched_in_a_step(data, method, no_fetch):
    module, batch = make_step(data, method), data.train.batch.select(range(16))
    optimizer = module.configure_optimizers()
    with no_fetch:
        for step in range(2):
            module.training_step(batch, step).backward()
            module.on_after_backward()
            module.configure_gradient_clipping(optimizer)


def test_nothing_is_fetched_in_a_step_of_segmentation(no_fetch):
    scenes = make_scenes()
    module, batch = make_step(scenes, "udml"), scenes.train.batch.select(range(4))
    with no_fetch:
        module.training_step(batch, 0).backward()
    with pytest.raises(AssertionError, match="fetched"), no_fetch:
        module.model.fusion.bias.sum().item()


def test_gradients_are_changed_then_clipped(data):
    module, batch = make_step(data, "udml"), data.train.batch.select(range(16))
    optimizer = module.configure_optimizers()
    doubled = []

    def after_backward(output, target, *, seed):
        assert torch.equal(target, batch.target) and torch.equal(seed, module.seeds[1:2])
        doubled.append(module.model.fusion.bias.grad.mul_(2).clone())

    module.model.after_backward = after_backward
    module.training_step(batch, 1).backward()
    module.on_after_backward()
    norm = nn.utils.get_total_norm([p.grad for p in module.model.parameters() if p.grad is not None])
    module.config = replace(TINY, clip=float(norm) / 4)
    module.configure_gradient_clipping(optimizer)
    torch.testing.assert_close(module.model.fusion.bias.grad, doubled[0] / 4)


def test_autocast_gives_the_ops_bfloat16_and_the_losses_float32(data):
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            model = module.model
            model.fusion.parts = lambda features, parts=model.fusion.parts: (
                seen.append({f.dtype for f in features}),
                parts(features),
            )[1]
            loss = model.loss

            def watched(output, target, **options):
                terms = loss(output, target, **options)
                seen.append({output.logits.dtype, output.unimodal.dtype} | {t.dtype for t in terms.values()})
                return terms

            model.loss = watched

    result = train(replace(TINY, precision="bf16-mixed", epochs=3), data, callbacks=[Look()], progress=False)
    assert {torch.bfloat16} in seen and {torch.float32} in seen and len({frozenset(s) for s in seen}) == 2
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    full = train(replace(TINY, epochs=3), data, progress=False)
    assert result.history[0]["loss"] == pytest.approx(full.history[0]["loss"], rel=2e-2)
    assert result.history[0]["loss"] != full.history[0]["loss"]


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"loss: expected a finite number.*learning_rate"):
        train(replace(TINY, learning_rate=1e30, optimizer="sgd", out=tmp_path), data, progress=False)


# What is random


def test_ranks_share_the_batches_of_one_process():
    epoch = [0]
    options = {"seed": 5, "epoch": lambda: epoch[0]}
    whole = EpochBatches(50, 8, **options)
    parts = [EpochBatches(50, 8, **options, rank=r, world=2) for r in range(2)]
    orders = []
    for epoch[0] in (0, 1, 0):
        batches = list(whole)
        assert [a + b for a, b in zip(*parts, strict=True)] == batches and len(batches) == len(whole) == 6
        orders.append([row for batch in batches for row in batch])
        assert len(set(orders[-1])) == 48
    assert orders[0] == orders[2] != orders[1]
    assert list(EpochBatches(50, 8, seed=6, epoch=lambda: 0)) != list(whole)
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes, got 8"):
        EpochBatches(50, 8, **options, world=3)
    stripes = [list(Stripes(7, 2, rank=r, world=2)) for r in range(2)]
    assert stripes == [[[0, 2], [4, 6]], [[1, 3], [5]]]


def test_every_step_has_a_seed_of_its_own():
    seeds = torch.cat([step_seeds(seed, 0, 500) for seed in range(4)])
    assert len(seeds.unique()) == 2000 and seeds.min() >= 0
    assert torch.equal(step_seeds(3, 100, 7), step_seeds(3, 0, 107)[100:])


def test_the_mix_depends_on_the_sample_alone():
    seed, ids = torch.tensor([5]), torch.arange(4000)
    sigma = mixed_sigma(4000, 2, 12.0, seed, ids)
    assert 0.45 < (sigma == 0).float().mean() < 0.55
    assert sigma.min() >= 0 and 0.98 * 12 < sigma.max() <= 12
    picked = torch.tensor([3999, 17])
    assert torch.equal(mixed_sigma(2, 2, 12.0, seed, picked), sigma[picked])
    assert not torch.equal(mixed_sigma(4000, 2, 12.0, seed + 1, ids), sigma)


# Evaluation


def test_evaluation_does_not_depend_on_the_batch(data):
    model = train(replace(TINY, epochs=3), data, progress=False).model.train()
    with udml_kernels.use_backend("reference"):
        for sigma in (0.0, 4.0, (0.0, 8.0), "mix"):
            whole = evaluate(model, data.test, data.spec, sigma)
            parts = evaluate(model, data.test, data.spec, sigma, batch_size=3)
            for name in ("logits", "weights", "noise", "sigma", "target"):
                torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
            assert parts.score == whole.score == (whole.logits.argmax(1) == whole.target).float().mean().item()
            again = evaluate(model, data.test, data.spec, whole.sigma)
            assert torch.equal(again.logits, whole.logits)
    assert model.training and whole.weights.shape == whole.noise.shape == (40, 2)
    assert evaluate(model, data.test, data.spec, (0.0, 8.0)).sigma.unique(dim=0).tolist() == [[0.0, 8.0]]
    kinds = [evaluate(model, data.test, data.spec, 4.0, kind=kind).logits for kind in ("gaussian", "uniform")]
    assert not torch.equal(*kinds)
    mixed = torch.full((40, 2), udml_kernels.KINDS.index("uniform"))
    torch.testing.assert_close(evaluate(model, data.test, data.spec, 4.0, kind=mixed, batch_size=9).logits, kinds[1])


def test_every_model_meets_the_same_noise(data):
    seen = []
    for method in ("udml", "qmf"):
        model = train(replace(TINY, method=method, epochs=3), data, progress=False).model
        model.encoders["eye"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        evaluate(model, data.test, data.spec, "mix")
    assert torch.equal(*seen)


@pytest.mark.parametrize("sigma", ["loud", (1.0, 2.0, 3.0), torch.zeros(3, 2)])
def test_levels_of_another_shape_are_refused(data, sigma):
    model = make_step(data, "static").model
    with pytest.raises(ValueError, match="sigma: expected 'mix', a number, or shape"):
        evaluate(model, data.test, data.spec, sigma)


# Checkpoints


@pytest.mark.parametrize("method, stopped", [("udml", 3), ("greedy", 1), ("udml", 0)])
def test_a_resumed_run_is_the_unbroken_one(tmp_path, method, stopped):
    # The encoders draw from torch's generator.
    data = make_data(dropout=0.3)
    config = replace(TINY, method=method)
    whole = train(replace(config, out=tmp_path / "whole"), data, progress=False)
    broken = replace(config, out=tmp_path / "broken")
    with pytest.raises(KeyError, match="stopped"):
        train(broken, data, callbacks=[Stop(stopped)], progress=False)
    assert (tmp_path / "broken" / "last.ckpt").exists() == (stopped > 0)
    result = train(replace(broken, resume=True), data, progress=False)
    assert_same(result.history, whole.history)
    assert_same(dict(result.best), dict(whole.best))
    assert (result.selected, result.scores) == (whole.selected, whole.scores)
    files = [tmp_path / name / "metrics.csv" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (read_checkpoint(tmp_path / run / name) for run in ("whole", "broken"))
        for checkpoint in (first, second):
            checkpoint["config"].pop("out", None)
        assert_same(plain(first), plain(second))
    # Nothing is left to do.
    again = train(replace(broken, resume=True), data, progress=False)
    assert_same(again.history, whole.history)


def plain(checkpoint):
    """OrderedDicts and dicts are alike."""
    if isinstance(checkpoint, OrderedDict | dict):
        return {name: plain(value) for name, value in checkpoint.items()}
    return checkpoint


KILLED = """
import os, signal, sys, torch
from lightning.pytorch import Callback
from udml.training import TrainConfig, train
torch.set_num_threads(1)

class Kill(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, step):
        if trainer.current_epoch == 2 and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)

train(TrainConfig(**SETTINGS, out=sys.argv[1]), callbacks=[Kill()], progress=False)
"""
DIGITS = {"data": "digits", "epochs": 4, "batch_size": 300, "width": 8, "device": "cpu"}


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path):
    whole = train(TrainConfig(**DIGITS), progress=False)
    script = KILLED.replace("SETTINGS", repr(DIGITS))
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=one_core(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 2
    result = train(TrainConfig(**DIGITS, out=tmp_path / "run", resume=True), progress=False)
    assert_same(result.history, whole.history)
    assert_same(dict(result.best), dict(whole.best))


def one_core() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_checkpoints_hold_tensors_and_plain_types_alone(data, tmp_path):
    result = train(replace(TINY, out=tmp_path, epochs=3), data, progress=False)
    for name in ("last.ckpt", "best.ckpt"):
        torch.load(tmp_path / name, weights_only=True)
    model = load_model(tmp_path / "best.ckpt", data)
    expected = evaluate(result.model, data.test, data.spec, "mix").logits
    assert torch.equal(evaluate(model, data.test, data.spec, "mix").logits, expected)
    with pytest.raises(ValueError, match=r"best\.ckpt: expected data with the modalities \['ear', 'eye'\]"):
        load_model(tmp_path / "best.ckpt", make_data(names=("ear", "nose")))
    with pytest.raises(ValueError, match=r"last\.ckpt: expected a best\.ckpt"):
        load_model(tmp_path / "last.ckpt", data)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", ["pickle", "cut off", "nothing"])
def test_a_bad_checkpoint_is_named_and_not_run(data, tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    config = replace(TINY, out=tmp_path / "run", epochs=3)
    train(config, data, progress=False)
    last = tmp_path / "run" / "last.ckpt"
    if content == "pickle":
        torch.save({"config": Evil()}, last)
    else:
        last.write_bytes(last.read_bytes()[:1000] if content == "cut off" else b"")
    with pytest.raises(ValueError, match=r"last\.ckpt: expected a checkpoint, got \w+"):
        train(replace(config, resume=True), data, progress=False)
    with pytest.raises(ValueError, match=r"last\.ckpt: expected a checkpoint"):
        load_model(last, data)
    assert not (tmp_path / "evil").exists()


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"


# What is refused


def test_a_run_is_not_overwritten_by_accident(data, tmp_path):
    config = replace(TINY, out=tmp_path, epochs=3)
    train(config, data, progress=False)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ValueError, match=r"out: .* holds a run; expected resume .* or overwrite"):
        train(config, data, progress=False)
    with pytest.raises(ValueError, match=r"resume: expected the settings .*: seed 0 instead of 1"):
        train(replace(config, seed=1, resume=True), data, progress=False)
    with pytest.raises(ValueError, match=r"resume: expected a run in .*, got none"):
        train(replace(config, out=tmp_path / "other", resume=True), data, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    result = train(replace(config, seed=1, overwrite=True), data, progress=False)
    assert [float(r["loss"]) for r in read_rows(tmp_path / "metrics.csv")] == [r["loss"] for r in result.history]
    with pytest.raises(ValueError, match="out: expected a folder, got the file"):
        train(replace(config, out=tmp_path / "metrics.csv"), data, progress=False)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 2}, "epochs: expected at least 3, got 2"),
        ({"batch_size": 1}, "batch_size: expected at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number, got 0.0"),
        ({"clip": float("nan")}, "clip: expected a positive number, got nan"),
        ({"precision": "8"}, "precision: expected one of 32-true, bf16-mixed, got '8'"),
        ({"optimizer": "lion"}, "optimizer: expected one of adamw, sgd, got 'lion'"),
        ({"phases": (1, 1, 1)}, r"phases: expected three that sum to epochs = 40, got \[1, 1, 1\]"),
        ({"resume": True}, "resume: expected out"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


def test_encoders_are_for_the_datas_modalities(data, tmp_path):
    encoders = {"ear": Encoder(5, 8), "nose": Encoder(5, 8)}
    with pytest.raises(ValueError, match=r"encoders: expected one .* tiny \(ear, eye\), got ear, nose"):
        train(replace(TINY, out=tmp_path / "run"), data, encoders, progress=False)
    assert not (tmp_path / "run").exists()
    swapped = {"eye": Encoder(5, 8), "ear": Encoder(5, 8)}
    assert train(replace(TINY, epochs=3), data, swapped, progress=False).model.modalities == ("ear", "eye")


# The command line


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "iris"], "data: expected one of watch, digits, cremad, kinetics-sound, nyud, got 'iris'"),
        (["--method", "magic"], "method: expected one of static, .*, udml, oracle, got 'magic'"),
        (["--fusion", "cold"], "fusion: expected one of concat, sum, gated, film, attention, got 'cold'"),
        (["--preset", "mine"], "preset: expected one of default, authors, got 'mine'"),
        (["--rate", "3"], "unrecognized arguments: --rate 3; expected one of data, method, .*, learning_rate"),
        (["--config", "bad.yaml"], "'rate' is not accepted; expected one of data, method, .*, learning_rate"),
        (["--config", "broken.yaml"], "config"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--epochs", "many"], "epochs.*int.*many"),
        (["--precision", "8"], "precision.*32-true.*bf16-mixed"),
        (["--data", "digits", "--views", "fou,nose"], "views: expected .*fou, fac, kar, pix, zer, mor, got fou, nose"),
        (["--data", "cremad"], "root: expected the folder of cremad"),
    ],
)
def test_bad_input_is_one_short_message(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("rate: 3\n")
    Path("broken.yaml").write_text("rate: [\n")
    try:
        code = command.main(["train", "--out", "run", *flags])
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and not Path("run").exists()
    assert error.startswith("python -m udml train: error: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_missing_packages_are_named(monkeypatch, capsys):
    found = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "lightning" else found(name))
    assert command.main(["train"]) == 2
    assert capsys.readouterr().err == "train needs lightning: pip install 'udml-kernels[train]'\n"


def test_the_command_trains_reports_and_takes_its_own_config(tmp_path, capsys):
    out = tmp_path / "run"
    flags = [f"--{name}={value}" for name, value in DIGITS.items()]
    assert command.main(["train", *flags, "--views", "fou,mor", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "epoch 4/4 weighted" in printed and "σ=12" in printed and "validation" in printed
    assert {p.name for p in out.iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "config.yaml",
        "metrics.csv",
        "result.json",
        "tensorboard",
    }
    result = json.loads((out / "result.json").read_text())
    assert list(result["test"]) == list(result["validation"]) == ["clean", "mix", "1", "2", "4", "8", "12"]
    assert result["config"]["views"] == "fou,mor" and list(result["selected"]) == ["clean", "noisy", "weighted"]
    assert result["validation"]["mix"] == max(
        float(r["validation_accuracy"]) for r in read_rows(out / "metrics.csv")[2:]
    )
    assert load_model(out / "best.ckpt").modalities == ("fou", "mor")
    assert command.main(["train", *flags, "--views", "fou,mor", "--out", str(out)]) == 2
    assert "holds a run" in capsys.readouterr().err
    again = ["train", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]
    assert command.main(again) == 0
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


# Several processes


def test_two_processes_train_as_one(tmp_path):
    methods = ("udml", "ogm-ge", "greedy")
    flags = [f"--{name}={value}" for name, value in DIGITS.items()]
    runs = "; ".join(f"main(['train', *sys.argv[2:], '--method={m}', '--out', sys.argv[1] + '/{m}'])" for m in methods)
    script = tmp_path / "runs.py"
    script.write_text(f"import sys, torch\nfrom udml.__main__ import main\ntorch.set_num_threads(1)\n{runs}\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run([*launch, str(tmp_path / "two"), *flags], env=one_core(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 4/4") == len(methods)
    for method in methods:
        one = train(TrainConfig(**DIGITS, method=method), progress=False)
        best = read_checkpoint(tmp_path / "two" / method / "best.ckpt")
        assert (best["epoch"], best["score"]) == (one.selected["weighted"], pytest.approx(one.scores["weighted"]))
        for row, expected in zip(read_rows(tmp_path / "two" / method / "metrics.csv"), one.history, strict=True):
            for name, value in expected.items():
                if name != "phase":
                    assert float(row[name]) == pytest.approx(value, rel=RANKS_BOUND), (method, row["epoch"], name)
