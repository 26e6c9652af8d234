"""Checkpoints, resuming, what is refused. Needs the train extra."""

import os
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from udml.data import MultimodalData
from udml.models import build_model
from udml.training import TrainConfig, evaluate, load_model, train
from udml.training.folder import read_checkpoint, write_atomically

from .udml_runs import TINY, Encoder, Stop, assert_same, make_data, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_data()


@pytest.mark.parametrize(
    "method, stopped, workers, preset",
    # The alpha of the authors' preset, which the next step weighs by, is in no state dict.
    [
        ("udml", 3, 0, None),
        ("greedy", 1, 0, None),
        ("udml", 0, 0, None),
        ("static", 3, 1, None),
        ("udml", 5, 0, "authors"),
    ],
)
def test_a_resumed_run_is_the_unbroken_one(tmp_path, method, stopped, workers, preset):
    # The encoders draw from torch's generator.
    data = make_data(dropout=0.3)
    config = replace(TINY, method=method, workers=workers, preset=preset)
    whole = train(replace(config, out=tmp_path / "whole", workers=0), data, progress=False)
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
            for name in ("out", "workers"):
                checkpoint["config"].pop(name, None)
        assert_same(plain(first), plain(second))
    # Nothing is left to do.
    again = train(replace(broken, resume=True), data, progress=False)
    assert_same(again.history, whole.history)


def test_a_checkpoint_without_a_scheduler_goes_on(tmp_path):
    # An earlier version set each epoch's learning rate itself.
    data, config = make_data(dropout=0.3), replace(TINY, out=tmp_path)
    whole = train(replace(config, out=None), data, progress=False)
    with pytest.raises(KeyError, match="stopped"):
        train(config, data, callbacks=[Stop(3)], progress=False)
    last = read_checkpoint(tmp_path / "last.ckpt")
    last["lr_schedulers"] = []
    (group,) = last["optimizer_states"][0]["param_groups"]
    del group["initial_lr"]
    group["lr"] = config.schedule.learning_rate(config.learning_rate, 2)
    torch.save(last, tmp_path / "last.ckpt")
    result = train(replace(config, resume=True), data, progress=False)
    assert_same(result.history, whole.history)
    assert_same(dict(result.best), dict(whole.best))


def plain(checkpoint):
    """OrderedDicts and dicts are alike."""
    if isinstance(checkpoint, OrderedDict | dict):
        return {name: plain(value) for name, value in checkpoint.items()}
    return checkpoint


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
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
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
    model = build_model("static", data.encoders(8), 4)
    with pytest.raises(ValueError, match="model: expected the num_classes of tiny, 3, got 4"):
        train(replace(TINY, out=tmp_path / "run"), data, model=model, progress=False)
    assert not (tmp_path / "run").exists()
    swapped = {"eye": Encoder(5, 8), "ear": Encoder(5, 8)}
    assert train(replace(TINY, epochs=3), data, swapped, progress=False).model.modalities == ("ear", "eye")
