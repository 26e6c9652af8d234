"""NYU Depth v2, read from a small folder in its very format. Needs Pillow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .folders import (
    load_small,
    refused,
    write_image,
    write_nyud,
)


@pytest.fixture
def nyud(tmp_path) -> Path:
    return write_nyud(tmp_path)


@pytest.mark.parametrize("void", [0, 255])
def test_nyud_whatever_stands_for_no_class(void, tmp_path):
    data = load_small("nyud", write_nyud(tmp_path, void), void=void)
    assert len(data.spec.classes) == 40 and data.spec.task == "segmentation"
    batch = data.test.__getitems__([0, 2])
    assert batch.target.shape == (2, 12, 16) and (batch.target[:, 0] == 255).all()
    assert torch.equal(batch.target[1, 1:], (torch.arange(16) + 7).expand(11, 16)), "class i + column of scene 7"
    assert batch.inputs["rgb"].dtype == torch.uint8 and batch.inputs["rgb"][0, :, 0, 3].tolist() == [3, 33, 252]
    depth = batch.inputs["depth"]
    assert depth.shape == (2, 1, 12, 16) and depth.dtype == torch.float32
    torch.testing.assert_close(depth[0, 0].flatten(), torch.linspace(0, 255, 192), rtol=0, atol=0.03)
    assert batch.index.tolist() == [5, 7]
    assert sorted(data.train.index.tolist() + data.validation.index.tolist()) == [0, 1, 2, 3, 4]


def test_nyuds_seed_and_lists_choose_who_validates(nyud):
    chosen = {tuple(load_small("nyud", nyud, seed=seed, validation=0.4).validation.index.tolist()) for seed in range(5)}
    assert len(chosen) > 1 and all(len(rows) == 2 for rows in chosen)
    (nyud / "val.txt").write_text("3\n4\n")
    with refused("expected no image of train.txt, got 3", nyud / "val.txt"):
        load_small("nyud", nyud, validation="val.txt")
    (nyud / "train.txt").write_text("0\n1\n2\n")
    assert load_small("nyud", nyud, validation="val.txt").validation.index.tolist() == [3, 4]


def test_nyud_with_depth_of_8_bits_and_as_hha(nyud):
    for i in range(8):
        write_image(nyud / "D8" / f"{i}.png", np.full((12, 16), 10 * i, np.uint8))
        write_image(nyud / "HHA" / f"{i}.png", np.full((12, 16, 3), (i, 2 * i, 3 * i), np.uint8))
    assert load_small("nyud", nyud, depth_folder="D8").test[0].inputs["depth"].unique().tolist() == [50]
    data = load_small("nyud", nyud, depth_folder="HHA")
    assert data.test[1].inputs["depth"][0, :, 5, 5].tolist() == [6, 12, 18]
    assert data.encoders(4)["depth"](data.test[1].inputs["depth"].float().expand(2, -1, -1, -1)).shape == (2, 4, 2, 2)
    write_image(nyud / "HHA" / "5.png", np.zeros((12, 16), np.uint8))
    with refused(r"expected 3 channel\(s\), as the first depth image, got the mode L", nyud / "HHA" / "5.png"):
        load_small("nyud", nyud, depth_folder="HHA")


def test_resizing_mixes_no_labels(nyud):
    batch = load_small("nyud", nyud, size=(6, 8)).test[0]
    assert batch.inputs["rgb"].shape == (1, 3, 6, 8) and batch.inputs["depth"].shape == (1, 1, 6, 8)
    assert set(batch.target.unique().tolist()) <= {*range(5, 21), 255} and batch.target.shape == (1, 6, 8)
    assert torch.isin(batch.inputs["depth"], load_small("nyud", nyud).test[0].inputs["depth"]).all()


def test_labels_may_be_palette_images(nyud):
    expected = load_small("nyud", nyud).test[0].target
    for path in (nyud / "Label").iterdir():
        with Image.open(path) as image:
            palette = Image.frombytes("P", image.size, image.tobytes())
        palette.putpalette([*range(256)] * 3)
        palette.save(path)
    assert torch.equal(load_small("nyud", nyud).test[0].target, expected)


def test_wrong_labels_of_pixels_name_their_file(nyud):
    path = nyud / "Label" / "3.png"
    label = np.full((12, 16), 41, np.uint8)
    write_image(path, label)
    with refused(r"expected labels in \[1, 40\], or 0 for none, got 41", path):
        load_small("nyud", nyud)
    with refused(r"expected labels in \[0, 39\], or 255 for none, got 40", nyud / "Label"):
        write_image(path, label - 1)
        load_small("nyud", nyud, void=255)
    write_image(path, np.zeros((12, 16, 3), np.uint8))
    with refused("expected one channel of labels, got the mode RGB", path):
        load_small("nyud", nyud)
    assert len(load_small("nyud", nyud, check_labels=False).test) == 3
    with pytest.raises(ValueError, match="void: expected 0 or 255, got 1"):
        load_small("nyud", nyud, void=1)


@pytest.mark.parametrize("folder", ["Depth", "Label"])
def test_images_of_another_size_than_the_colours(folder, nyud):
    path = nyud / folder / "5.png"
    write_image(path, np.zeros((12, 15), np.uint8 if folder == "Label" else np.uint16))
    with refused(r"expected 16 x 12 pixels, as .*RGB/5.png, got 15 x 12", path):
        load_small("nyud", nyud)


def test_missing_scenes_and_lists_name_themselves(nyud):
    (nyud / "Depth" / "6.png").unlink()
    with refused(r"expected an image \(.*\), which a list names, got nothing there", nyud / "Depth" / "6"):
        load_small("nyud", nyud)
    with refused("expected a folder of images", nyud / "D"):
        load_small("nyud", nyud, depth_folder="D")
    (nyud / "test.txt").write_text("\n")
    with refused("expected at least one name, got none", nyud / "test.txt"):
        load_small("nyud", nyud)
    (nyud / "test.txt").unlink()
    with refused("expected a list of images, one a line, got No such file", nyud / "test.txt"):
        load_small("nyud", nyud)


def test_a_list_names_a_scene_once(nyud):
    for again in ("3", "RGB/3.jpg", "3.png"):
        (nyud / "train.txt").write_text(f"0\n1\n2\n3\n4\n{again}\n")
        with refused("expected each image once, got 3 again", nyud / "train.txt"):
            load_small("nyud", nyud)


def test_a_name_that_two_images_have(nyud):
    write_image(nyud / "RGB" / "3.jpg", np.zeros((12, 16, 3), np.uint8))
    with refused("expected one image, got 3.jpg and 3.png", nyud / "RGB" / "3"):
        load_small("nyud", nyud)


@pytest.mark.parametrize("folder", ["RGB", "Depth", "Label"])
def test_empty_images_are_found_when_the_set_is_loaded(folder, nyud):
    (nyud / folder / "3.png").write_bytes(b"")
    with refused("expected an image, got an empty file", nyud / folder / "3.png"):
        load_small("nyud", nyud, check_labels=False)


@pytest.mark.parametrize("void", [0, 255])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_has_a_pixel_with_a_class(split, void, tmp_path):
    root = write_nyud(tmp_path, void)
    chosen = load_small("nyud", root, void=void, validation=0.4).splits[split].items
    for scene in chosen[1:]:
        write_image(scene.label, np.full((12, 16), void, np.uint8))
    load_small("nyud", root, void=void, validation=0.4)
    write_image(chosen[0].label, np.full((12, 16), void, np.uint8))
    with refused("expected at least one pixel with a class, got 255, no class, everywhere", f"nyud, {split}"):
        load_small("nyud", root, void=void, validation=0.4)


def test_colours_in_grey_of_16_bits_are_scaled(nyud):
    levels = np.arange(192, dtype=np.uint16).reshape(12, 16) * 343
    write_image(nyud / "RGB" / "5.png", levels)
    found = load_small("nyud", nyud).test[0].inputs["rgb"][0]
    assert torch.equal(found, torch.from_numpy(np.rint(levels / 257).astype(np.uint8)).expand(3, -1, -1))
