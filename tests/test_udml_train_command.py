"""python -m udml train. Needs the train and demo extras and the data packages."""

import json
import re
from pathlib import Path

import pytest
from udml import __main__ as command
from udml.training import load_model

from .udml_runs import DIGITS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "iris"], "data: expected one of watch, digits, hog, cremad, kinetics-sound, nyud, got 'iris'"),
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
    best = max(float(row["validation_accuracy"]) for row in read_rows(out / "metrics.csv")[2:])
    assert result["validation"]["mix"] == pytest.approx(best, abs=1e-6)
    assert load_model(out / "best.ckpt").modalities == ("fou", "mor")
    assert command.main(["train", *flags, "--views", "fou,mor", "--out", str(out)]) == 2
    assert "holds a run" in capsys.readouterr().err
    again = ["train", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")]
    assert command.main(again) == 0
    assert (tmp_path / "again" / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()
