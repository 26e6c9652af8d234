"""`python -m udml broken-sensor`: what it breaks, and the table it writes."""

import pytest
import torch
from udml.experiments import broken

from .udml_runs import read_rows


def test_faults():
    x = torch.randn(3, 2, 4)
    for name, fault in broken.FAULTS.items():
        kept = x.clone()
        assert fault(x).shape == x.shape and torch.equal(x, kept), name
    assert torch.equal(broken.FAULTS["times 1e3"](x), 1000 * x)
    assert (broken.FAULTS["stuck at 5"](x) == 5).all()
    assert broken.FAULTS["one feature NaN"](x).isnan().sum() == 3
    assert set(broken.TRAINING_FAULTS) <= set(broken.FAULTS)


def test_the_command_writes_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(broken, "FAULTS", {name: broken.FAULTS[name] for name in ("times 1e6", "frozen at a sample")})
    monkeypatch.setattr(broken, "TRAINING_FAULTS", ("times 1e6",))
    arguments = ["--methods", "static", "--seeds", "2", "--epochs", "3", "--out", str(tmp_path)]
    assert broken.main(arguments) == 0
    rows = read_rows(tmp_path / "broken_sensor.csv")
    assert [(row["when"], row["fault"]) for row in rows] == [
        ("evaluation", "times 1e6"),
        ("evaluation", "frozen at a sample"),
        ("training", "times 1e6"),
    ]
    scaled, frozen, trained = rows
    assert scaled["difference"] == trained["difference"] == "0" and float(scaled["accuracy"]) > 60
    assert float(frozen["difference"]) < -broken.ALLOWED
    text = (tmp_path / "broken_sensor.md").read_text()
    assert "| times 1e6 | +0.0 |" in text and "| frozen at a sample | **-" in text and "finite: yes" in text


@pytest.mark.parametrize("flag", [["--seeds", "1"], ["--epochs", "2"], ["--methods", "magic"]])
def test_what_cannot_be_run_is_refused(flag, capsys):
    with pytest.raises(SystemExit):
        broken.parse(flag)
    assert flag[0] in capsys.readouterr().err
