"""Encoders and models of the user's own: trained, resumed, read back. Needs the train extra."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from udml import UDML
from udml.data import MultimodalData
from udml.encoders import FrameEncoder, Framewise, MLPEncoder, SegmentationEncoder
from udml.models import METHODS, Static, build_model
from udml.training import TrainConfig, evaluate, load_model, train
from udml.training.folder import read_checkpoint

from .udml_runs import TINY, Encoder, Stop, assert_same, make_arrays

SHORT = replace(TINY, epochs=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> MultimodalData:
    return MultimodalData.from_arrays(make_arrays())


def logits(model, data: MultimodalData, weighting: bool = True) -> torch.Tensor:
    level = 4.0 if data.spec.task == "segmentation" else "mix"
    found = evaluate(model, data.test, data.spec, level, weighting=weighting)
    return found.weights if found.logits is None else found.logits


# Models read back.


def scenes() -> MultimodalData:
    draw = np.random.default_rng(0)
    target = draw.integers(0, 2, (30, 1, 1)).repeat(8, 1).repeat(8, 2)
    inputs = {"rgb": (100 * target[:, None] + draw.integers(0, 100, (30, 3, 8, 8))).astype(np.uint8)}
    inputs["depth"] = target[:, None] + draw.normal(size=(30, 1, 8, 8))
    return MultimodalData.from_arrays((inputs, target), task="segmentation")


MODELS = {
    "temperature": lambda encoders, k, task: UDML(encoders, k, temperature=9.0, floor=0.5, task=task),
    "no estimator": lambda encoders, k, task: UDML(encoders, k, "gated", estimator=False, task=task),
    "no dependency": lambda encoders, k, task: UDML(encoders, k, dependency=False, hidden=np.int64(5), task=task),
    "authors": lambda encoders, k, task: UDML(encoders, k, preset="authors", lam=np.float64(0.2), task=task),
    "static": lambda encoders, k, task: Static(encoders, k, fusion="film", width={next(iter(encoders)): 8}, task=task),
    "ogm-ge": lambda encoders, k, task: build_model("ogm-ge", encoders, k, alpha=0.3, task=task),
    "tmc": lambda encoders, k, task: build_model("tmc", encoders, k, fusion="attention", task=task),
}


@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("model", MODELS)
def test_the_trained_model_is_loaded_from_its_path_alone(data, tmp_path, model, task):
    data = scenes() if task == "segmentation" else data
    config = replace(SHORT, batch_size=8 if task == "segmentation" else 32, out=tmp_path)
    k = len(data.spec.classes)
    result = train(config, data, model=lambda: MODELS[model](data.encoders(8), k, task), progress=False)
    # Nothing but tensors and plain types.
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["model"]["method"] == result.config.method
    state = torch.get_rng_state()
    loaded = load_model(tmp_path / "best.ckpt")
    assert torch.equal(torch.get_rng_state(), state) and not loaded.training
    assert type(loaded) is type(result.model)
    assert torch.equal(logits(loaded, data), logits(result.model, data))


@pytest.mark.parametrize("method", METHODS)
def test_what_the_config_builds_is_loaded_from_its_path_alone(data, tmp_path, method):
    result = train(replace(SHORT, method=method, fusion="gated", out=tmp_path), data, progress=False)
    assert torch.equal(logits(load_model(tmp_path / "best.ckpt"), data), logits(result.model, data))


def test_encoders_of_the_users_are_asked_for_and_compared(data, tmp_path):
    def encoders(activation=nn.ReLU, width=8):
        images = nn.Sequential(nn.Conv2d(3, width, 3, 2), activation())
        return {"ear": MLPEncoder(6, 8), "eye": images}

    result = train(replace(SHORT, out=tmp_path), data, encoders, progress=False)
    best = tmp_path / "best.ckpt"
    expected = r"best\.ckpt: encoders: expected modules of the user's own for eye \(Sequential\), got None .*encoders="
    with pytest.raises(ValueError, match=expected):
        load_model(best)
    # Those of the data are others.
    with pytest.raises(ValueError, match=r"encoders\.eye SpectrogramEncoder instead of Sequential"):
        load_model(best, data)
    with pytest.raises(ValueError, match=r"encoders\.eye\.1 GELU instead of ReLU"):
        load_model(best, encoders={"eye": encoders(nn.GELU)["eye"]})
    with pytest.raises(ValueError, match=r"encoders\.eye\.0\.out_channels 4 instead of 8"):
        load_model(best, encoders={"eye": encoders(width=4)["eye"]})
    with pytest.raises(ValueError, match="encoders: expected some of ear, eye, got nose"):
        load_model(best, encoders={"nose": encoders()["eye"]})
    for given in (encoders(), {"eye": encoders()["eye"]}):
        assert torch.equal(logits(load_model(best, encoders=given), data), logits(result.model, data))
    model = build_model("udml", encoders(), 3)
    assert torch.equal(logits(load_model(best, model=model), data), logits(result.model, data))
    with pytest.raises(
        ValueError, match=r"settings .*'temperature': 9\.0.*; weighting\.temperature 9\.0 instead of 3\.0"
    ):
        load_model(best, model=build_model("udml", encoders(), 3, temperature=9.0))


class Patches(nn.Conv2d):
    """A user's layer on one of torch's."""


def test_the_settings_of_a_layer_of_the_users_are_compared(data, tmp_path):
    def encoders(stride):
        return {"ear": MLPEncoder(6, 8), "eye": Patches(3, 8, 2, stride)}

    train(replace(SHORT, out=tmp_path), data, lambda: encoders(2), progress=False)
    with pytest.raises(ValueError, match=r"got encoders\.eye\.stride \(1, 1\) instead of \(2, 2\)"):
        load_model(tmp_path / "best.ckpt", encoders=encoders(1))
    load_model(tmp_path / "best.ckpt", encoders=encoders(2))


class Own(UDML):
    """A user's model whose arguments no checkpoint knows how to use."""


def test_a_model_of_the_users_is_asked_for(data, tmp_path):
    result = train(replace(SHORT, out=tmp_path), data, model=Own(data.encoders(8), 3, temperature=2.0), progress=False)
    best = tmp_path / "best.ckpt"
    assert read_checkpoint(best)["config"]["method"] == "Own"
    with pytest.raises(ValueError, match=r"best\.ckpt: model: expected the Own of the user's own .* got None .*model="):
        load_model(best)
    with pytest.raises(ValueError, match="model: expected the Own that was trained, got the model UDML instead of Own"):
        load_model(best, model=UDML(data.encoders(8), 3, temperature=2.0))
    again = load_model(best, model=Own(data.encoders(8), 3, temperature=2.0))
    assert torch.equal(logits(again, data), logits(result.model, data))


def test_a_model_that_was_changed_after_it_was_built(data, tmp_path):
    def changed():
        model = UDML(data.encoders(8), 3)
        model.weighting.temperature = 9.0
        return model

    result = train(replace(SHORT, out=tmp_path), data, model=changed(), progress=False)
    with pytest.raises(ValueError, match=r"weighting\.temperature 3\.0 instead of 9\.0 .*model="):
        load_model(tmp_path / "best.ckpt")
    loaded = load_model(tmp_path / "best.ckpt", model=changed())
    assert torch.equal(logits(loaded, data), logits(result.model, data))


def test_encoders_of_frames_are_rebuilt_inside_their_wrapper(tmp_path):
    draw = np.random.default_rng(0)
    inputs = {"a": draw.normal(size=(40, 6, 2, 1, 1)), "b": draw.normal(size=(40, 3, 2, 40, 40))}
    data = MultimodalData.from_arrays((inputs, np.arange(40) % 2), test=0.3)

    def encoders():
        return {"a": Framewise(SegmentationEncoder(6, 8)), "b": FrameEncoder(8)}

    result = train(replace(SHORT, batch_size=8, out=tmp_path), data, encoders, progress=False)
    loaded = load_model(tmp_path / "best.ckpt")
    assert torch.equal(logits(loaded, data), logits(result.model, data))


# Runs.


def test_the_files_of_a_run_say_what_was_trained(data, tmp_path):
    config = replace(SHORT, data="own", out=tmp_path)
    result = train(config, data, model=Static(data.encoders(8), 3, fusion="gated", gamma=0.5), progress=False)
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    expected = {"data": "own", "method": "static", "fusion": "gated", "gamma": 0.5, "width": 8}
    for found in (written, read_checkpoint(tmp_path / "best.ckpt")["config"], result.config.plain()):
        assert {name: found[name] for name in expected} == expected
    # The default names another data set than the one that is given.
    train(replace(SHORT, out=tmp_path, overwrite=True), data, progress=False)
    assert read_checkpoint(tmp_path / "last.ckpt")["config"]["data"] == "own"
    with pytest.raises(ValueError, match=r"data: expected one of watch, .*, got 'own'"):
        train(config, progress=False)


def test_a_run_is_resumed_with_its_own_model_and_data(data, tmp_path):
    def model(**options):
        return lambda: UDML(data.encoders(8), 3, **options)

    whole = train(SHORT, data, model=model(temperature=2.0), progress=False)
    config = replace(SHORT, out=tmp_path)
    with pytest.raises(KeyError, match="stopped"):
        train(config, data, model=model(temperature=2.0), callbacks=[Stop(2)], progress=False)
    config = replace(config, resume=True)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"resume: expected the settings .*: temperature 2.0 instead of None"):
        train(config, data, model=model(), progress=False)
    with pytest.raises(ValueError, match=r"resume: expected the UDML that was trained, got settings .*'hidden': 5"):
        train(config, data, model=model(temperature=2.0, hidden=5), progress=False)
    other = {"ear": Encoder(6, 8), "eye": data.encoders(8)["eye"]}
    with pytest.raises(ValueError, match=r"resume: expected the UDML .*, got encoders\.ear Encoder instead of MLPEnc"):
        train(config, data, model=UDML(other, 3, temperature=2.0), progress=False)
    fewer = MultimodalData.from_arrays(make_arrays(90))
    with pytest.raises(ValueError, match=r"resume: expected the settings .*: samples \{'train': 78, .* instead of"):
        train(config, fewer, model=model(temperature=2.0), progress=False)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    result = train(config, data, model=model(temperature=2.0), progress=False)
    assert_same(result.history, whole.history)


def test_the_seed_covers_what_a_function_builds(data):
    def losses(seed: int, **given) -> list[float]:
        torch.manual_seed(torch.seed() % 2**31)
        return [row["loss"] for row in train(replace(SHORT, seed=seed), data, **given, progress=False).history]

    for given in (
        {"model": lambda: UDML(data.encoders(8), 3)},
        {"encoders": lambda: {"ear": Encoder(6, 8), "eye": SegmentationEncoder(3, 8)}},
    ):
        first = losses(1, **given)
        assert losses(1, **given) == first != losses(2, **given)


def test_own_encoders_need_no_encoders_of_the_data(data):
    config = TrainConfig(epochs=3, batch_size=32, device="cpu")
    bare = replace(data, make_encoders=None)
    result = train(config, bare, model=UDML(data.encoders(8), 3), progress=False)
    assert len(result.history) == 3
