"""A training run: what is recorded, selected and drawn. Needs the train extra."""

from dataclasses import replace
from statistics import fmean

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from udml.data import DataError, FolderSet, MultimodalData
from udml.models import METHODS, UDML, authors_noise
from udml.training import TrainConfig, evaluate, load_model, train
from udml.training.loaders import EpochBatches, stripes
from udml.training.module import TrainingModule
from udml.training.randomness import mixed_sigma, step_seeds

from .udml_runs import TINY, assert_same, make_data, make_scenes, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return make_data()


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
        level, draws = (0.0, 1) if phase == "clean" else ("mix", TINY.validation_draws)
        options = {"weighting": phase == "weighted", "batch_size": 7}
        again = [evaluate(model, data.validation, data.spec, level, draw=d, **options).score for d in range(draws)]
        assert fmean(again) == pytest.approx(result.scores[phase], abs=1e-6)
    assert_same(dict(result.model.state_dict()), dict(result.best["weighted"]))
    assert result.history[-1]["loss_task"] < result.history[2]["loss_task"]


def test_a_callback_may_log_a_score_of_its_own(data, monkeypatch):
    """It takes no part in the selection. The training itself logs once an epoch: each `log` is host time of a step."""
    logged = []
    log = TrainingModule.log
    monkeypatch.setattr(
        TrainingModule, "log", lambda self, name, *a, **k: logged.append(name) or log(self, name, *a, **k)
    )

    class Own(Callback):
        def on_validation_epoch_end(self, trainer, module):
            module.log("validation_f1", 0.1234)

    result = train(TINY, data, callbacks=[Own()], progress=False)
    assert 0.1234 not in result.scores.values() and not any("validation_f1" in row for row in result.history)
    assert {name: logged.count(name) for name in set(logged)} == dict.fromkeys(
        ("validation_f1", "loss", "validation"), len(result.history)
    )


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
    # In the clean phase too the estimator learns the level, 1, and alpha has a part in the weights.
    assert result.history[0]["loss_noise"] > 0
    assert result.history[0]["weight_ear"] < 1 < result.history[0]["weight_eye"]


def test_the_authors_preset_is_trained_on_their_noise(data):
    def noises(preset):
        model = UDML({name: nn.Linear(5, 4) for name in data.spec.modalities}, 3, preset=preset)
        return TrainingModule(model, data.spec, TINY).forward_pass.injector.noises

    assert noises("default") == tuple(data.spec.noise.values())
    assert noises("authors") == tuple(authors_noise(noise) for noise in data.spec.noise.values())


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


def test_validation_without_a_class_is_an_error_also_where_labels_are_read_late():
    scenes = make_scenes()
    batch = scenes.validation.batch

    def read(row):
        return {name: x[row] for name, x in batch.inputs.items()}, torch.full((8, 8), 255)

    late = replace(scenes, validation=FolderSet(range(6), batch.index.tolist(), read))
    with pytest.raises(DataError, match="scenes: expected at least one pixel with a class, got 255"):
        train(TrainConfig(epochs=3, batch_size=4, width=8, device="cpu"), late, progress=False)


def test_clean_images_are_normalised():
    scenes, seen = make_scenes(), []
    result = train(TrainConfig(epochs=3, batch_size=4, width=8, device="cpu"), scenes, progress=False)
    result.model.encoders["rgb"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    evaluate(result.model, scenes.test, scenes.spec, 0.0)
    expected = (scenes.test.batch.inputs["rgb"].float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(seen[0], expected)


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
    assert [list(stripes(7, 2, rank=r, world=2)) for r in range(2)] == [[[0, 2], [4, 6]], [[1, 3], [5]]]


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
