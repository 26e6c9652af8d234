"""CREMA-D, and what it shares with Kinetics-Sound, read from small folders in their very formats. Needs Pillow."""

import pickle
import re
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from udml.data import DataError
from udml.data.files import images_in
from udml.layers.noise import NoiseInjector

from .folders import (
    CREMAD_TRAIN,
    SOUNDS_TRAIN,
    WRITERS,
    load_small,
    refused,
    write_cremad,
    write_image,
    write_list,
    write_wav,
)

MEAN, STD = (torch.tensor(v).reshape(1, 3, 1, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


@pytest.fixture
def cremad(tmp_path) -> Path:
    return write_cremad(tmp_path)


def samples(data) -> list:
    """(split, item) of every sample."""
    return [(split, item) for split, part in data.splits.items() for item in part.items]


# CREMA-D.


def test_cremad_as_the_field_reads_it(cremad):
    data = load_small("cremad", cremad, size=224)
    assert data.spec.classes == ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG") and data.spec.max_sigma == 12
    batch = data.test.__getitems__([1, 0])
    assert batch.inputs["audio"].shape == (2, 1, 257, 188) and batch.inputs["audio"].dtype == torch.float32
    assert batch.inputs["visual"].shape == (2, 3, 1, 224, 224) and batch.inputs["visual"].dtype == torch.uint8
    assert batch.target.tolist() == [2, 4] and batch.index.tolist() == [6, 5]
    # The sound of clip 6 is a tone of 1 kHz: its line is at 1000 n_fft / rate.
    assert batch.inputs["audio"][0, 0].mean(1).argmax() == round(1000 * 512 / 22050)
    # Of three frames, the middle one: 10 + 6 bright.
    assert (batch.inputs["visual"][0].int() - 16).abs().max() <= 1


def test_images_are_disturbed_before_they_are_normalised(cremad):
    data = load_small("cremad", cremad, frames=3)
    batch = data.test.__getitems__([0, 1])
    assert batch.inputs["visual"].shape == (2, 3, 3, 32, 32)
    inputs = [torch.zeros(2, 1, 50, 50), torch.full((2, 3, 1, 50, 50), 128, dtype=torch.uint8)]
    inject = NoiseInjector([data.spec.noise[name] for name in ("audio", "visual")])
    clean = inject([inputs[0], batch.inputs["visual"]], torch.zeros(2, 2), seed=torch.tensor([3]))[1]
    torch.testing.assert_close(clean, (batch.inputs["visual"] / 255 - MEAN) / STD, rtol=1e-5, atol=1e-5)
    audio, visual = inject(inputs, torch.tensor([[0.5, 2.0], [3.0, 4.0]]), seed=torch.tensor([3]))
    levels = (visual * STD + MEAN) * 255
    for x, expected in zip([*audio, *levels], [0.5, 3.0, 4.0, 16.0], strict=True):
        torch.testing.assert_close(x.std(), torch.tensor(expected), rtol=0.05, atol=0)


def test_cremads_validating_actors_do_not_train(cremad):
    seen = set()
    for seed in range(6):
        data = load_small("cremad", cremad, seed=seed, validation=0.3)
        actors = {
            split: {clip.name[:4] for part, clip in samples(data) if part == split} for split in ("train", "validation")
        }
        assert actors["train"] | actors["validation"] == {"1001", "1002", "1003"} and len(actors["validation"]) == 1
        assert not actors["train"] & actors["validation"]
        assert [clip.name for split, clip in samples(data) if split == "test"] == ["1001_MTI_DIS_XX", "1002_IWW_SAD_XX"]
        seen |= actors["validation"]
    assert len(seen) > 1, "the seed chooses"


def test_cremad_lists_in_other_words(cremad):
    expected = load_small("cremad", cremad).train.targets
    rows = [(clip, str(["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"].index(label))) for clip, label in CREMAD_TRAIN]
    write_list(cremad / "train.csv", [("clip", "label"), *rows])
    (cremad / "train.csv").write_text("\ufeff" + (cremad / "train.csv").read_text().replace("\n", "\r\n") + "\r\n")
    assert torch.equal(load_small("cremad", cremad).train.targets, expected)
    (cremad / "Image-01-FPS").rename(cremad / "faces")
    (cremad / "AudioWAV").rename(cremad / "speech")
    (cremad / "train.csv").rename(cremad / "a.csv")
    (cremad / "test.csv").rename(cremad / "b.csv")
    names = {"frame_folder": "faces", "audio_folder": "speech", "train_list": "a.csv", "test_list": "b.csv"}
    assert torch.equal(load_small("cremad", cremad, **names).train[0].target, expected[:1])


@pytest.mark.parametrize(
    "line, message",
    [
        ("1001_A_ANG_XX", "line 6: expected 2 columns, clip,label, got 1: 1001_A_ANG_XX"),
        ("1001_A_ANG_XX,ANG,3", "line 6: expected 2 columns, clip,label, got 3: 1001_A_ANG_XX,ANG,3"),
        ("1001_A_ANG_XX,JOY", "line 6: expected a label of NEU, HAP, SAD, FEA, DIS, ANG, got 'JOY'"),
        ("1001_A_ANG_XX,6", "line 6: expected a label of NEU, HAP, SAD, FEA, DIS, ANG, got '6'"),
        ("../1001_A_ANG_XX,ANG", "line 6: expected the name of a clip inside the data's folders"),
        (",ANG", "line 6: expected the name of a clip inside the data's folders"),
        ('"1001,ANG', "expected lines clip,label, got unexpected end of data"),
    ],
)
def test_a_wrong_line_of_a_list_names_itself(line, message, cremad):
    with open(cremad / "train.csv", "a") as file:
        file.write(line + "\n")
    with refused(re.escape(message), cremad / "train.csv"):
        load_small("cremad", cremad)


def test_lists_that_are_missing_empty_or_no_text(cremad):
    path = cremad / "test.csv"
    path.write_text("\nclip,label\n")
    with refused("expected at least one line clip,label, got none", path):
        load_small("cremad", cremad)
    path.write_bytes(b"\xff\xfe\x00,ANG\n")
    with refused("expected a list of lines clip,label in UTF-8", path):
        load_small("cremad", cremad)
    path.unlink()
    with refused("expected a list of lines clip,label, got No such file", path):
        load_small("cremad", cremad)


def test_a_clip_neither_trains_and_tests_nor_lacks_an_actor(cremad):
    write_list(cremad / "test.csv", CREMAD_TRAIN[:1])
    with refused("expected no clip of train.csv, got 1001_DFA_ANG_XX", cremad / "test.csv"):
        load_small("cremad", cremad)
    write_cremad(cremad)
    write_list(cremad / "train.csv", [("DFA_ANG_XX", "ANG")])
    for folder, suffix in (("AudioWAV", ".wav"), ("Image-01-FPS", "")):
        (cremad / folder / f"1001_DFA_ANG_XX{suffix}").rename(cremad / folder / f"DFA_ANG_XX{suffix}")
    with refused("names that begin with an actor's number, 1001_, got DFA_ANG_XX", cremad / "train.csv"):
        load_small("cremad", cremad)


def test_one_actor_cannot_both_train_and_validate(cremad):
    write_list(cremad / "train.csv", CREMAD_TRAIN[:2])
    with refused("cremad, validation: expected at least one sample, got none"):
        load_small("cremad", cremad)


def test_missing_clips_are_an_error_or_left_out(cremad):
    wav, frames = cremad / "AudioWAV" / "1002_ITS_NEU_XX.wav", cremad / "Image-01-FPS" / "1003_TIE_SAD_XX"
    wav.unlink()
    with refused("expected a wav file, which a list names, got nothing there", wav):
        load_small("cremad", cremad)
    shutil.rmtree(frames)
    with pytest.warns(UserWarning, match="2 of 5 clips lack files and are left out"):
        data = load_small("cremad", cremad, skip_missing=True)
    assert sorted(clip.row for split, clip in samples(data) if split != "test") == [0, 1, 4]
    wav.write_bytes((cremad / "AudioWAV" / "1001_DFA_ANG_XX.wav").read_bytes())
    with refused("expected a folder of frames, which a list names, got nothing there", frames):
        load_small("cremad", cremad)
    with refused("expected a folder of clips, got nothing there", cremad / "sounds"):
        load_small("cremad", cremad, audio_folder="sounds")


@pytest.mark.parametrize("name", ["cremad", "kinetics-sound"])
@pytest.mark.parametrize("same", [True, False])
def test_a_list_names_a_clip_once(name, same, tmp_path):
    root, rows = WRITERS[name](tmp_path), {"cremad": CREMAD_TRAIN, "kinetics-sound": SOUNDS_TRAIN}[name]
    label = rows[1][1] if same else rows[0][1]
    for again in (rows[1][0], "./" + rows[1][0]):
        write_list(root / "train.csv", [*rows, (again, label)])
        with refused(f"line {len(rows) + 1}: expected each clip once, got {rows[1][0]} again", root / "train.csv"):
            load_small(name, root)


@pytest.mark.parametrize("name", ["cremad", "kinetics-sound"])
@pytest.mark.parametrize("fault", ["no frames", "an empty frame", "an empty wav", "a wav without samples", "LFS"])
def test_empty_files_are_found_when_the_set_is_loaded(name, fault, tmp_path):
    root, rows = WRITERS[name](tmp_path), {"cremad": CREMAD_TRAIN, "kinetics-sound": SOUNDS_TRAIN}[name]
    folders = {"cremad": ("AudioWAV", "Image-01-FPS"), "kinetics-sound": ("wav", "frames")}[name]
    wav, frames = root / folders[0] / f"{rows[2][0]}.wav", root / folders[1] / rows[2][0]
    if fault == "no frames":
        for path in frames.iterdir():
            path.unlink()
        path, message = frames, "expected at least one image"
    elif fault == "an empty frame":
        path, message = sorted(frames.iterdir())[{"cremad": 1, "kinetics-sound": 5}[name]], "got an empty file"
        path.write_bytes(b"")
    else:
        path, message = wav, "got an empty file"
        wav.write_bytes(b"")
        if fault == "a wav without samples":
            write_wav(wav, np.zeros(0))
            message = "got a wav file of length 0"
        elif fault == "LFS":
            wav.write_text("version https://git-lfs.github.com/spec/v1\n")
            message = "got a pointer of Git LFS"
    with refused(f".*{message}.*skip_missing leaves such clips out", path):
        load_small(name, root)
    with pytest.warns(UserWarning, match=f"1 of {len(rows)} clips lack files and are left out; .*{message}"):
        data = load_small(name, root, skip_missing=True)
    for part in data.splits.values():
        assert len(part.__getitems__(range(len(part)))) == len(part)
    assert rows[2][0] not in {clip.name for _, clip in samples(data)}


def test_grey_frames_of_16_bits_are_scaled(cremad):
    levels = np.random.default_rng(0).integers(0, 65_536, (32, 32), np.uint16)
    levels[0, :4] = 0, 128, 129, 65_535
    for path in (cremad / "Image-01-FPS" / "1001_MTI_DIS_XX").iterdir():
        path.unlink()
    write_image(cremad / "Image-01-FPS" / "1001_MTI_DIS_XX" / "1.png", levels)
    found = load_small("cremad", cremad).test[0].inputs["visual"][0, :, 0]
    expected = torch.from_numpy(np.rint(levels.astype(np.float64) / 65_535 * 255).astype(np.uint8))
    assert torch.equal(found, expected.expand(3, -1, -1)) and found[0, 0, :4].tolist() == [0, 0, 1, 255]


def test_broken_frames_name_themselves(cremad):
    folder = cremad / "Image-01-FPS" / "1001_MTI_DIS_XX"
    path = folder / "00025.jpg"
    write_image(path, np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-500])
    with refused("expected an image, got image file is truncated", path):
        load_small("cremad", cremad)
    path.write_text("a page that says the image was not found")
    with refused("expected an image, got a file of no known kind", path):
        load_small("cremad", cremad)
    path.write_bytes(b"")
    with refused("expected an image, got an empty file", path):
        load_small("cremad", cremad)
    for image in folder.iterdir():
        image.unlink()
    with refused(r"expected at least one image \(.jpg, .jpeg, .png\), got none", folder):
        load_small("cremad", cremad)


@pytest.mark.parametrize("option", ["frames", "size"])
def test_sizes_of_clips_are_checked(option, cremad):
    with pytest.raises(ValueError, match=f"{option}: expected an integer of at least 1, got 0"):
        load_small("cremad", cremad, **{option: 0})


def test_frames_are_sorted_by_their_numbers(tmp_path):
    for name in ("frame_10_250.jpg", "frame_2_50.jpg", ".frame_1_25.jpg", "notes.txt"):
        write_image(tmp_path / "f.png", np.zeros((2, 2, 3), np.uint8))
        (tmp_path / "f.png").rename(tmp_path / name)
    assert [path.name for path in images_in(tmp_path)] == ["frame_2_50.jpg", "frame_10_250.jpg"]


# Loaders.


@pytest.mark.parametrize("name", WRITERS)
def test_workers_read_the_same_samples(name, tmp_path):
    data = load_small(name, WRITERS[name](tmp_path), validation=0.3)
    here = data.train.__getitems__([1, 0])
    loader = DataLoader(
        pickle.loads(pickle.dumps(data.train)), batch_sampler=[[1, 0]], num_workers=1, collate_fn=_identity
    )
    (there,) = loader
    assert torch.equal(there.index, here.index) and torch.equal(there.target, here.target)
    for key in data.spec.modalities:
        assert torch.equal(there.inputs[key], here.inputs[key])


def test_what_breaks_in_a_worker_still_names_its_file(cremad):
    data = load_small("cremad", cremad, validation=0.3)
    path = cremad / "AudioWAV" / f"{data.train.items[1].name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    loader = DataLoader(data.train, batch_sampler=[[1]], num_workers=1, collate_fn=_identity)
    with pytest.raises(DataError, match=f"{path}: expected at least one sample"):
        next(iter(loader))


def _identity(batch):
    return batch
