"""The data, the schedule, a short training and the demo. Needs the demo extra, the data package included."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from udml import ProgressiveSchedule
from udml import __main__ as command
from udml.demo.comparison import REFERENCE, curve_bound, relative_differences
from udml.demo.windows import SHA256, SUBJECTS, DataError, Windows, load_watch, split_by_subject
from udml.demo.report import run_demo
from udml.demo.loop import MAX_SIGMA, Config, mixed_sigma, predict, train

import udml_kernels

TINY = Config(ProgressiveSchedule(1, 1, 1), batch_size=32, width=16)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def windows() -> Windows:
    return load_watch()


@pytest.fixture(scope="module")
def few(windows) -> dict[str, Windows]:
    return {name: part.select(torch.arange(0, len(part), 9)) for name, part in split_by_subject(windows).items()}


def test_watch_windows(windows):
    assert len(windows) == 3605
    assert [tuple(x.shape) for x in windows.inputs] == [(3605, 3, 128)] * 2
    assert windows.target.unique().tolist() == list(range(7)) and len(windows.classes) == 7


def test_split_is_by_subject(windows):
    parts = split_by_subject(windows)
    people = [set(part.subject.tolist()) for part in parts.values()]
    assert people == [set(numbers) for numbers in SUBJECTS.values()]
    assert sum(map(len, people)) == 10 and set.union(*people) == set(range(1, 11))
    assert sum(map(len, parts.values())) == 3605
    for x in parts["train"].inputs:
        torch.testing.assert_close(x.mean((0, 2)), torch.zeros(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.std((0, 2)), torch.ones(3), rtol=0, atol=1e-3)


def test_other_data_is_refused_before_it_is_unpickled(tmp_path):
    other = tmp_path / "watch.npy"
    other.write_bytes(b"not the data")
    with pytest.raises(DataError, match=f"watch.npy: expected .*{SHA256}"):
        load_watch(other)
    with pytest.raises(DataError, match=r"absent\.npy: expected the watch data of seglearn==1\.2\.5"):
        load_watch(tmp_path / "absent.npy")


def test_missing_data_exits_with_2(monkeypatch, capsys, tmp_path):
    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_installed)
    assert command.main(["demo", "--out", str(tmp_path)]) == 2
    assert "pip install --no-deps seglearn==1.2.5" in capsys.readouterr().err


def test_unknown_command_lists_the_choices(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["dance"])
    assert stopped.value.code == 2
    assert "demo" in capsys.readouterr().err


def test_ops_do_not_import_training():
    check = "import sys, udml_kernels; sys.exit('udml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


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
    with pytest.raises(ValueError, match="at least 3"):
        ProgressiveSchedule.of(2)


def test_mix_depends_on_the_sample_alone():
    seed, ids = torch.tensor([5]), torch.arange(4000)
    sigma = mixed_sigma(4000, 2, seed, ids)
    assert 0.45 < (sigma == 0).float().mean() < 0.55
    assert sigma.min() >= 0 and 0.98 * MAX_SIGMA < sigma.max() <= MAX_SIGMA
    picked = torch.tensor([3999, 17])
    torch.testing.assert_close(mixed_sigma(2, 2, seed, picked), sigma[picked])


def test_prediction_does_not_depend_on_the_batch(few):
    with udml_kernels.use_backend(REFERENCE):
        model = train(few, TINY).model
        whole = predict(model, few["test"], 4.0)[0].logits
        rows = torch.tensor([5, 2])
        torch.testing.assert_close(predict(model, few["test"].select(rows), 4.0)[0].logits, whole[rows])


def test_fused_and_reference_train_alike(few):
    fused = train(few, TINY)
    with udml_kernels.use_backend(REFERENCE):
        reference = train(few, TINY)
    for epoch, difference in enumerate(relative_differences(fused.losses, reference.losses)):
        assert difference <= curve_bound(epoch)
    assert relative_differences([float("nan")], [1.0]) == [float("inf")]


def test_the_first_epoch_shows_other_noise(few, monkeypatch):
    expected = train(few, TINY).losses
    draw = udml_kernels.draw_seed
    monkeypatch.setattr(udml_kernels, "draw_seed", lambda: draw() + 1)
    assert relative_differences(train(few, TINY).losses, expected)[0] > curve_bound(0)


def test_demo_draws_and_reports(few, tmp_path):
    from rich.console import Console

    with open(tmp_path / "log.txt", "w") as log:
        assert run_demo(tmp_path / "out", TINY, few, Console(file=log, width=120)) == 0
    text = (tmp_path / "log.txt").read_text()
    for part in ("Training loss", "median", "Accuracy on the test people", "Predicted σ"):
        assert part in text
    assert (tmp_path / "out" / "udml.png").read_bytes().startswith(b"\x89PNG")


def test_demo_fails_when_the_curves_disagree(few, tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("udml.demo.comparison.relative_differences", lambda first, second: [0.0, 0.5, 0.0])
    with open(tmp_path / "log.txt", "w") as log:
        assert run_demo(tmp_path / "out", TINY, few, Console(file=log, width=120)) == 1
    assert "disagree" in (tmp_path / "log.txt").read_text()
