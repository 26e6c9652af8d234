"""Noise and faults that training has not seen: what the reproduction measures, and how the aims judge it."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from udml.data import MultimodalData
from udml.experiments import aims, unseen, unseen_tables
from udml.experiments.faults import FAULTS, MASKED
from udml.experiments.frame import Frame, Probe
from udml.experiments.measures import ALL, LEVELS, TRUE_LEVELS
from udml.experiments.plan import Plan
from udml.experiments.unseen import BARE, CASES, FAULT, ONE, Unseen
from udml.models import build_model

pytestmark = pytest.mark.usefixtures("one_thread_and_seed")
CLASSES, FEATURES = 3, 64


@pytest.fixture
def data():
    arrays = {name: torch.randn(60, FEATURES) for name in ("a", "b", "c")}
    return MultimodalData.from_arrays((arrays, torch.arange(60) % CLASSES), noise=0.25)


@pytest.fixture
def whole(data):
    return data.test.__getitems__(list(range(len(data.test))))


def case(text):
    return next(c for c in CASES if c.text == text)


def test_the_cases_are_what_training_does_not_have():
    texts = [c.text for c in CASES]
    assert len(set(texts)) == len(texts)
    assert all(c.kind in FAULTS or c.kind == MASKED for c in CASES if c.group in (FAULT, BARE))
    assert all(c.guarded != (c.group == BARE) for c in CASES)
    assert all(c.sigma > 12 for c in CASES if c.kind == "gaussian")


@pytest.mark.parametrize("one", CASES, ids=lambda c: c.text)
def test_only_what_is_degraded_changes(data, whole, one):
    degrade = unseen._Degrade(data.spec)
    batch, told = degrade(whole, one, "b")
    again, _ = degrade(whole, one, "b")
    assert told.shape == (len(whole), 3) and told.dtype == torch.float32 and (told[:, [0, 2]] == 0).all()
    for name in "ac":
        assert torch.equal(batch.inputs[name], whole.inputs[name])
    assert torch.equal(batch.inputs["b"].nan_to_num(9), again.inputs["b"].nan_to_num(9))
    if one.kind == MASKED:
        assert batch.present.tolist() == [[True, False, True]] * len(whole) and (told == 0).all()
        assert torch.equal(batch.inputs["b"], whole.inputs["b"])
    else:
        assert batch.present is None and not torch.equal(batch.inputs["b"], whole.inputs["b"])
        useless = one.kind in FAULTS or one.kind == "replace"
        assert (told[:, 1] == (12 if useless else one.sigma)).all()
    if one.together:
        batch, told = degrade(whole, one, ALL)
        assert all(not torch.equal(batch.inputs[name], whole.inputs[name]) for name in "abc")
        assert (told > 0).all()


def test_the_noise_has_the_stated_strength(data, whole):
    unit, rows = data.spec.noise["b"].unit, whole.select(torch.arange(len(whole)).repeat(400))
    rows.index = torch.arange(len(rows))
    degrade = unseen._Degrade(data.spec)

    def added(text):
        return degrade(rows, case(text), "b")[0].inputs["b"] - rows.inputs["b"]

    assert added("gaussian, σ = 24").std() == pytest.approx(24 * unit, rel=0.02)
    assert added("uniform, σ = 8").std() == pytest.approx(8 * unit, rel=0.02)
    dropped = degrade(rows, case("dropout, σ = 8"), "b")[0].inputs["b"] == 0
    assert dropped.float().mean() == pytest.approx(0.5, abs=0.02)
    replaced = degrade(rows, case("replaced by noise, σ = 4"), "b")[0].inputs["b"]
    assert replaced.std() == pytest.approx(4 * unit, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([replaced.flatten(), rows.inputs["b"].flatten()]))[0, 1]) < 0.02


@pytest.mark.parametrize("method", ["static", "udml", "oracle"])
def test_a_caught_fault_is_a_missing_modality_and_the_guard_comes_back(data, method):
    model = build_model(method, data.encoders(8), CLASSES).eval()
    guard = model.guard
    # A guard that has seen ordinary inputs.
    for _ in range(3):
        guard.train()([torch.randn(64, FEATURES) for _ in "abc"])
    guard.eval()
    found = unseen.measure_unseen(model, data, True)
    assert model.guard is guard and list(found) == [c.text for c in CASES]
    for one in CASES:
        assert set(found[one.text]) == {*"abc", *([ALL] if one.together else [])}
    for text in ("stuck at 0", "stuck at 5", "times 1e2", "not a number"):
        assert found[text] == found["missing"]
    assert found == unseen.measure_unseen(model, data, True)


def test_the_guard_is_off_where_the_case_says_so(data, monkeypatch):
    model, seen = build_model("static", data.encoders(8), CLASSES).eval(), []

    def score(model, degraded, weighting):
        seen.append(model.guard is not None)
        return 0.5

    monkeypatch.setattr(unseen, "_score", score)
    unseen.measure_unseen(model, data, True)
    assert seen == [c.guarded for c in CASES for _ in range(3 + c.together)]


# Tables and aims


def result(shift=0.0, mix=0.8):
    """A run whose accuracies under faults are `shift` points above 50."""
    scores = {
        c.text: {"a": 0.4 + shift / 100, "b": 0.6 + shift / 100} | ({ALL: 0.1} if c.together else {}) for c in CASES
    }
    curve = [float(s) for s in TRUE_LEVELS]
    noise = dict.fromkeys(("low", "median", "high", "mean"), curve) | {"mean_square": [s * s for s in curve]}
    noise |= {"spearman": 0.93, "slopes": [1.0, 1.0, 1.0]}
    accuracy = {name: [0.9] * len(LEVELS) for name in (ALL, "a", "b")} | {"mix": mix}
    probe = {"a": 0.9, "b": 0.7 + shift / 1000}
    return {"unseen": scores, "accuracy": accuracy, "noise": {"a": noise, "b": noise}, "probe": probe}


def frame(data="hog", udml=lambda seed: result(), static=lambda seed: result()):
    spec = type("Spec", (), {"modalities": ("a", "b"), "name": data})
    runs = {
        ("main", row, ""): {seed: make(seed) for seed in range(3)} for row, make in (("udml", udml), ("static", static))
    }
    return Frame(replace(Plan.of("hog"), data=data), spec, runs)


def test_one_is_the_mean_over_the_modalities():
    one = case("uniform, σ = 4")
    assert Unseen(one, ONE).of(result(2)) == pytest.approx(100 * fmean([0.42, 0.62]))
    assert Unseen(one, ALL).of(result()) == pytest.approx(10)
    assert Probe("b").of(result()) == pytest.approx(70)


def test_the_table_has_paired_differences():
    rows = unseen_tables.unseen(frame(udml=lambda seed: result(3 + seed), static=lambda seed: result(seed)))
    assert len(rows) == 2 * sum(3 + c.together for c in CASES)
    row = next(r for r in rows if (r["method"], r["case"], r["degraded"]) == ("UDML", "stuck at 0", ONE))
    assert row["minus_static"] == pytest.approx(3) and row["minus_static_low"] == pytest.approx(3)
    assert row["minus_pe"] is None and row["seeds"] == 3
    text = unseen_tables.section(frame())
    assert "| stuck at 5, guard off; one |" in text and "| gaussian, σ = 16; all |" in text


def held(found, start):
    (aim,) = [aim for aim in found if aim.text.startswith(start)]
    return aim.holds


@pytest.mark.parametrize(("shift", "expected"), [(5.1, True), (4.9, False)])
def test_the_aim_of_a_broken_sensor(shift, expected):
    found = aims.aims(frame(udml=lambda seed: result(shift)))
    assert held(found, "broken sensor: UDML 5 points above static") is expected
    assert held(found, "broken sensor, guard off: UDML 5 points above static") is expected


def test_the_aims_of_the_mix_and_of_the_estimator():
    above = lambda seed: result(mix=0.81 + seed / 1000)  # noqa: E731
    uncertain = lambda seed: result(mix=0.81 + seed / 10 - 0.1)  # noqa: E731
    start = "UDML above static on the mix"
    assert held(aims.aims(frame(udml=above)), start) is True
    assert held(aims.aims(frame(udml=uncertain)), start) is False
    assert held(aims.aims(frame("watch", udml=above)), start) is None
    below = "UDML not more than 0.3 below static on the mix"
    assert held(aims.aims(frame("watch", udml=lambda seed: result(mix=0.7971))), below) is True
    assert held(aims.aims(frame("watch", udml=lambda seed: result(mix=0.7969))), below) is False
    assert held(aims.aims(frame()), "noise of a: Spearman") is True
    assert held(aims.aims(frame("digits")), "noise of a: Spearman") is False
    assert held(aims.aims(frame(udml=lambda seed: result(-1))), "probe of b") is False
    assert not [aim for aim in aims.aims(frame("digits")) if aim.text.startswith("probe")]
