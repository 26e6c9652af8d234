"""Kinetics-Sound, read from a small folder in its very format. Needs Pillow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from udml.data.kinetics_sound import ACTIONS

from .folders import (
    SOUNDS_TRAIN,
    load_small,
    refused,
    tone,
    write_list,
    write_sounds,
    write_wav,
)


@pytest.fixture
def sounds(tmp_path) -> Path:
    return write_sounds(tmp_path)


def test_kinetics_sound_as_the_authors_read_it(sounds):
    data = load_small("kinetics-sound", sounds)
    assert data.spec.classes == ("bowling", "tap dancing")
    batch = data.test.__getitems__([0, 1])
    assert batch.inputs["audio"].shape == (2, 1, 129, 626) and batch.inputs["visual"].shape == (2, 3, 3, 32, 32)
    assert batch.target.tolist() == [0, 1] and batch.index.tolist() == [8, 9]
    # Frames 1, 5 and 8 of ten, those of clip 8.
    assert (batch.inputs["visual"][0, 0, :, 5, 5].int() - torch.tensor([18, 58, 88])).abs().max() <= 1
    assert data.validation.targets.bincount().tolist() == [1, 1]
    assert data.train.targets.bincount().tolist() == [3, 3]


def test_kinetics_sound_hears_the_middle_of_ten_seconds(sounds):
    parts = [tone(hertz, seconds) for hertz, seconds in ((4000, 2.5), (1000, 5.0), (4000, 2.5))]
    write_wav(sounds / "wav" / "051OSKacPxg_000129_000139.wav", np.concatenate(parts))
    spectrogram = load_small("kinetics-sound", sounds).test[0].inputs["audio"][0, 0]
    assert (spectrogram[:, 1:-1].argmax(0) == round(1000 * 256 / 16000)).all()


def test_kinetics_sound_classes(sounds):
    assert len(ACTIONS) == len(set(ACTIONS)) == 34 and list(ACTIONS) == sorted(ACTIONS)
    own = load_small("kinetics-sound", sounds, classes=("Tap_Dancing", "bowling", "yodelling"))
    assert own.spec.classes == ("tap dancing", "bowling", "yodelling") and own.test.targets.tolist() == [1, 0]
    rows = [(clip, {"bowling": "blowing_out_candles"}.get(label, label)) for clip, label in SOUNDS_TRAIN]
    write_list(sounds / "train.csv", rows)
    with refused("line 1: expected a label of blowing out, tap dancing, got 'bowling'", sounds / "test.csv"):
        load_small("kinetics-sound", sounds)
    write_list(sounds / "train.csv", [*rows, ("-3Mwkq-7TV9", "humming")])
    with refused("line 9: expected a label of blowing nose, .*, typing, got 'humming'", sounds / "train.csv"):
        load_small("kinetics-sound", sounds)


def test_a_list_of_its_own_validates(sounds):
    write_list(sounds / "val.csv", SOUNDS_TRAIN[6:])
    with refused("expected no clip of train.csv, got -3Mwkq-7TV", sounds / "val.csv"):
        load_small("kinetics-sound", sounds, validation="val.csv")
    write_list(sounds / "train.csv", SOUNDS_TRAIN[:6])
    data = load_small("kinetics-sound", sounds, validation="val.csv")
    assert [len(part) for part in data.splits.values()] == [6, 2, 2]
    assert data.validation.index.tolist() == [6, 7] and data.test.index.tolist() == [8, 9]
