"""The demo, the schedule, and what importing the packages brings in. Needs the train and demo extras, data included."""

import importlib.metadata
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from udml import ProgressiveSchedule
from udml import __main__ as command
from udml.data import MultimodalData, TensorSet, load_data
from udml.demo import op_timing
from udml.demo.comparison import (
    EPOCH_BOUND,
    FIRST_EPOCH_BOUND,
    REFERENCE,
    TASK_BOUND,
    Report,
    curve_bound,
    relative_differences,
    task_bound,
)
from udml.demo.report import run_demo
from udml.training import Result, TrainConfig, module, train

import udml_kernels
from udml_kernels import backends

from .threads import single_thread

TINY = TrainConfig(epochs=3, batch_size=32, width=16, validation_draws=1, device="cpu")
ROOT = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def few() -> MultimodalData:
    data = load_data("watch")
    splits = {name: TensorSet(s.batch.select(torch.arange(0, len(s), 9))) for name, s in data.splits.items()}
    return replace(data, **splits)


@pytest.fixture(scope="module")
def fused(few) -> Result:
    with single_thread():
        return train(TINY, few, progress=False)


def losses(result: Result, name: str = "loss") -> list[float]:
    return [row[name] for row in result.history]


def shift_seeds(monkeypatch, runs: set[int]) -> None:
    """Other noise in some of the runs, counted from 0; a run of TINY asks for its seeds three times."""
    draw, asked = module.step_seeds, []

    def shifted(*arguments):
        asked.append(arguments)
        return draw(*arguments) + ((len(asked) - 1) // TINY.epochs in runs)

    monkeypatch.setattr(module, "step_seeds", shifted)


def demo(out: Path, config: TrainConfig, data: MultimodalData) -> tuple[int, str]:
    log = io.StringIO()
    return run_demo(out, config, data, Console(width=120, file=log)), log.getvalue()


# What is compared.


def test_fused_and_reference_train_alike(few, fused):
    with udml_kernels.use_backend(REFERENCE):
        reference = train(TINY, few, progress=False)
    for name, bound in (("loss", curve_bound), ("loss_task", task_bound)):
        for epoch, difference in enumerate(relative_differences(losses(fused, name), losses(reference, name))):
            assert difference <= bound(epoch), (name, epoch)
    assert relative_differences([float("nan")], [1.0]) == [float("inf")]


def test_the_first_epoch_shows_other_noise(few, fused, monkeypatch):
    shift_seeds(monkeypatch, {0})
    other = train(TINY, few, progress=False)
    assert relative_differences(losses(other), losses(fused))[0] > curve_bound(0)
    assert relative_differences(losses(other, "loss_task"), losses(fused, "loss_task"))[0] > task_bound(0)


def test_each_epoch_has_its_bound():
    within = Report([], [FIRST_EPOCH_BOUND, EPOCH_BOUND, 0.0], [0.0, 0.0, TASK_BOUND], [])
    assert within.agree
    first = Report([], [EPOCH_BOUND, 0.0], [0.0, 0.0], [])
    assert first.disagreements == [("loss", 0, EPOCH_BOUND, FIRST_EPOCH_BOUND)] and not first.agree
    later = Report([], [0.0, 0.5, 0.0], [0.0, 0.0, float("inf")], [])
    assert later.disagreements == [("loss", 1, 0.5, EPOCH_BOUND), ("task loss", 2, float("inf"), TASK_BOUND)]


# What is timed.


def test_the_ops_are_timed_on_a_steps_own_tensors(few, fused):
    before = {name: value.clone() for name, value in fused.model.state_dict().items()}
    originals = [getattr(udml_kernels, name) for name in op_timing.OPS]
    calls = op_timing.record_step(fused)
    assert {name: len(made) for name, made in calls.items()} == {
        "inject_noise": 1,
        "reparameterize": 1,
        "noise_regression": 1,
        "modality_dependency": 1,
        "fusion": 1,
    }
    assert [getattr(udml_kernels, name) for name in op_timing.OPS] == originals
    (noise,), (sample,) = calls["inject_noise"], calls["reparameterize"]
    inputs, sigma = noise.outputs(), noise.arguments[1] / 0.25
    (estimate,) = calls["noise_regression"]
    assert torch.equal(estimate.arguments[5].mT, sigma)
    features = sample.outputs()[:2]
    weights = fused.model.fusion.weight.split(TINY.width, 1)
    (fusion,) = calls["fusion"]
    torch.testing.assert_close(fusion.arguments[0][1], features[1] @ weights[1].mT)
    torch.testing.assert_close(fusion.arguments[1], estimate.outputs()[0].squeeze(2).mT)
    assert inputs[0].shape == (32, 3, 128) and sigma.shape == (32, 2)
    # What the sampling is given back: by z and by the mean of std of both modalities, and by the KL.
    assert set(sample.gradients) == set(range(5))
    assert sample.gradients[4].unique().item() == pytest.approx(1e-4 / 32)
    timings = op_timing.time_ops(fused, ("reference", REFERENCE))
    assert [t.name for t in timings] == [*calls, op_timing.TOTAL]
    assert all(min(seconds) > 0 and len(seconds) == op_timing.REPEATS for t in timings for seconds in t.seconds)
    after = fused.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# The command.


def test_demo_draws_and_reports(few, tmp_path, monkeypatch):
    draw, used = module.step_seeds, []

    def noted(*arguments):
        used.append(backends.select(torch.device("cpu")))
        return draw(*arguments)

    monkeypatch.setattr(module, "step_seeds", noted)
    code, text = demo(tmp_path / "out", TINY, few)
    assert code == 0
    assert used == [backends.select(torch.device("cpu"))] * TINY.epochs + [REFERENCE] * TINY.epochs
    for part in ("Training loss", "median", "Accuracy on the test people", "Predicted σ", "fusion", "The demo took"):
        assert part in text
    assert (tmp_path / "out" / "udml.png").read_bytes().startswith(b"\x89PNG")


def test_demo_fails_when_the_curves_disagree(few, tmp_path, monkeypatch):
    shift_seeds(monkeypatch, {1})
    code, text = demo(tmp_path / "out", TINY, few)
    assert code == 1
    assert "The loss curves disagree: the loss of epoch 1 differs by" in text


def test_demo_fails_when_a_loss_is_not_finite(few, tmp_path):
    code, text = demo(tmp_path / "out", replace(TINY, learning_rate=1e30), few)
    assert code == 1 and "A run failed: loss: expected a finite number" in text
    assert not (tmp_path / "out").exists()


def test_missing_data_exits_with_2(monkeypatch, capsys, tmp_path):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    assert command.main(["demo", "--out", str(tmp_path)]) == 2
    assert "pip install --no-deps seglearn==1.2.5" in capsys.readouterr().err


def test_bad_arguments_exit_with_2(capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    for flags, message in (
        (["--out", str(file)], f"out: expected a folder, got the file {file}"),
        (["--out", str(tmp_path / "out"), "--seed=-1"], "seed: expected at least 0, got -1"),
    ):
        try:
            code = command.main(["demo", *flags])
        except SystemExit as stopped:
            code = stopped.code
        assert code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_command_lists_the_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["dance"])
    assert stopped.value.code == 2
    assert "demo" in capsys.readouterr().err


# What is imported.


def test_importing_leaves_out_what_is_not_needed():
    extras = {"lightning", "torchmetrics", "tensorboard", "jsonargparse", "matplotlib", "rich", "PIL", "yaml"}
    check = f"""
import sys, udml_kernels
assert "udml" not in sys.modules
import udml
print(*{extras} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_all_that_udml_exports_is_there():
    import udml

    assert all(hasattr(udml, name) for name in udml.__all__)


# The schedule.


def test_schedule():
    schedule = ProgressiveSchedule(2, 1, 2)
    assert [schedule.position(e)[0].name for e in range(5)] == ["clean"] * 2 + ["noisy"] + ["weighted"] * 2
    assert [schedule.position(e)[0].noise for e in range(5)] == [False] * 2 + [True] * 3
    assert [schedule.position(e)[0].weighting for e in range(5)] == [False] * 3 + [True] * 2
    assert schedule.learning_rate(1.0, 0) == schedule.learning_rate(1.0, 2) == 1.0
    assert schedule.learning_rate(1.0, 1) < 1.0
    assert all(ProgressiveSchedule.of(n).epochs == n for n in range(3, 60))
    with pytest.raises(ValueError, match="epoch: expected one in"):
        schedule.position(5)
    assert ProgressiveSchedule.of(2).lengths == (0, 1, 1) and ProgressiveSchedule.of(1).lengths == (0, 0, 1)
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        ProgressiveSchedule.of(0)
