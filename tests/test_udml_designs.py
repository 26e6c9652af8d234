"""`python -m udml designs` and `suppression`, from end to end with few and short runs. Needs the data packages."""

import csv

import pytest
import torch
from udml.data import load_data
from udml.experiments import designs, judged, suppression
from udml.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_designs(tmp_path, monkeypatch, capsys):
    few = {name: designs.DESIGNS[name] for name in ("static", "free", "detached, sizes")}
    monkeypatch.setattr(designs, "DESIGNS", few)
    argv = ["--data", "digits", "--seeds", "2", "--epochs", "3", "--jobs", "1", "--out", str(tmp_path)]
    assert designs.main(argv) == 0
    found = rows(tmp_path / "digits-adamw.csv")
    assert [row["design"] for row in found] == list(few)
    assert found[0]["mix - static"] == "" and found[0]["spearman fou"] == ""
    assert -1 <= float(found[2]["spearman fou"]) <= 1 and "[" in found[2]["mix - static"]
    assert (tmp_path / "digits-adamw.md").read_text() in capsys.readouterr().out
    # The runs are kept: nothing is trained again.
    monkeypatch.setattr("udml.experiments.jobs.execute", None)
    assert designs.main(argv) == 0
    monkeypatch.undo()
    assert designs.main([*argv, "--split", "test", "--only", "static"]) == 0
    assert [row["design"] for row in rows(tmp_path / "digits-adamw-test.csv")] == ["static"]


def test_suppression(tmp_path, monkeypatch):
    few = {name: suppression.METHODS[name] for name in ("static", "UDML", "UDML, α on gradients")}
    monkeypatch.setattr(suppression, "METHODS", few)
    argv = ["--data", "digits", "--seeds", "1", "--epochs", "4", "--jobs", "1", "--out", str(tmp_path)]
    assert suppression.main(argv) == 0
    static, udml, _ = rows(tmp_path / "digits-sgd.csv")
    assert static["gradient of noise, zer"] == "–" and float(udml["gradient of noise, zer"]) >= 0
    assert float(static["gradient of task, zer"]) > 0 and static["α zer"] == "–" and float(udml["α zer"]) > 0
    assert (tmp_path / "digits-sgd.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", [designs.main, suppression.main])
def test_wrong_arguments(command):
    with pytest.raises(SystemExit) as exit:
        command(["--data", "nothing"])
    assert exit.value.code == 2


def test_the_probe_finds_what_the_features_know():
    torch.manual_seed(0)
    data = load_data("digits")
    model = build_model("static", data.encoders(16), 10)
    model.encoders["zer"] = torch.nn.Sequential(torch.nn.Linear(47, 16), torch.nn.BatchNorm1d(16))
    torch.nn.init.zeros_(model.encoders["zer"][0].weight)
    found = judged.probes(model.eval(), data, data.validation)
    # Random features know something, constant ones nothing.
    assert found["fou"] > 0.25 and found["zer"] == pytest.approx(0.1, abs=0.02)
