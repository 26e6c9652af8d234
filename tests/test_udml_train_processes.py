"""Runs that are killed, and runs of several processes. Needs the train extra and the data packages."""

import signal
import subprocess
import sys

import pytest
from udml.training import TrainConfig, train
from udml.training.folder import read_checkpoint

from .udml_runs import DIGITS, assert_same, one_core, read_rows

# float32 sums in another order; measured over six epochs of six methods: at most 2.2e-7.
RANKS_BOUND = 2e-6


pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_killed_run_goes_on_from_its_last_epoch(tmp_path):
    whole = train(TrainConfig(**DIGITS), progress=False)
    script = KILLED.replace("SETTINGS", repr(DIGITS))
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=one_core(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 2
    result = train(TrainConfig(**DIGITS, out=tmp_path / "run", resume=True), progress=False)
    assert_same(result.history, whole.history)
    assert_same(dict(result.best), dict(whole.best))


FEW = """
import sys, torch
from dataclasses import replace
from udml.data import TensorSet, load_data
from udml.training import TrainConfig, train
torch.set_num_threads(1)

data = load_data("digits")
data = replace(data, **{sys.argv[1]: TensorSet(getattr(data, sys.argv[1]).batch.select([0]))})
try:
    train(TrainConfig(**SETTINGS), data, progress=False)
except ValueError as error:
    print(f"refused: {error}\\n", end="")  # One write: the lines of two processes must not mix.
"""


@pytest.mark.parametrize(
    "split, expected",
    [
        ("validation", "data: expected at least 2 samples in validation, one for each process, got 1"),
        ("train", "data: expected at least 2 samples to train on, got 1"),
    ],
)
def test_fewer_samples_than_processes_are_refused(tmp_path, split, expected):
    script = tmp_path / "few.py"
    script.write_text(FEW.replace("SETTINGS", repr(DIGITS | {"batch_size": 100})))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), split]
    done = subprocess.run(launch, env=one_core(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"refused: {expected}") == 2


RUNS = """
import sys, torch
from udml.__main__ import main
torch.set_num_threads(1)
for method in METHODS:
    main(["train", *sys.argv[2:], "--method", method, "--out", f"{sys.argv[1]}/{method}"])
"""


def test_two_processes_train_as_one(tmp_path):
    methods, settings = ("udml", "ogm-ge", "greedy"), DIGITS | {"batch_size": 100}
    script = tmp_path / "runs.py"
    script.write_text(RUNS.replace("METHODS", repr(methods)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    flags = [str(tmp_path), *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run([*launch, *flags], env=one_core(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The first process alone prints and writes.
    assert done.stdout.count("epoch 4/4") == len(methods)
    for method in methods:
        one = train(TrainConfig(**settings, method=method), progress=False)
        best = read_checkpoint(tmp_path / method / "best.ckpt")
        assert (best["epoch"], best["score"]) == (one.selected["weighted"], one.scores["weighted"])
        for row, expected in zip(read_rows(tmp_path / method / "metrics.csv"), one.history, strict=True):
            assert row.pop("phase") == expected.pop("phase")
            numbers = {name: float(value) for name, value in row.items() if value}
            assert numbers == pytest.approx(expected, rel=RANKS_BOUND), (method, row["epoch"])
