"""Data sets of the user's own: folders of images, tables of paths or bytes, arrays and tensors."""

import io
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from demp.errors import UsageError
from demp.train import DataConfig, sources
from demp.train.data import Data, load_test_set

WORDS = ("cat", "dog", "emu")
SIDE = 6


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def pixels(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def png(array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, "png")
    return out.getvalue()


def write_pngs(folder: Path, arrays) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        (folder / f"{i}.png").write_bytes(png(array))
    return [f"{folder.name}/{i}.png" for i in range(len(arrays))]


def load(path, **changes):
    return sources.load(DataConfig(name=str(path), **changes))


def equal(split, arrays, labels):
    assert torch.equal(split.images, torch.from_numpy(arrays).permute(0, 3, 1, 2))
    assert split.labels.tolist() == list(labels)


def test_a_folder_of_classes_without_a_test_split_holds_a_part_out(tmp_path):
    for number, word in enumerate(WORDS):
        write_pngs(tmp_path / "zoo" / word, pixels(4, seed=number))
    with pytest.raises(UsageError, match=r"only train; set data\.test_split .* or data\.validation=0\.1"):
        load(tmp_path / "zoo")
    source = load(tmp_path / "zoo", validation=0.25)
    assert (source.class_names, source.num_classes, source.test) == (WORDS, 3, None)
    data = Data(DataConfig(name=str(tmp_path / "zoo"), validation=0.25), batch_size=2, seed=0, device="cpu")
    assert (len(data.train), data.test.split.labels.tolist(), data.tested_on) == (9, [0, 1, 2], "validation")
    with pytest.raises(UsageError, match="no split to test on"):
        load_test_set(data.config, data.facts, "cpu")


def test_a_folder_of_splits_and_classes(tmp_path):
    for split in ("train", "val"):
        for number, word in enumerate(WORDS):
            write_pngs(tmp_path / "zoo" / split / word, pixels(2, seed=number))
    source = load(tmp_path / "zoo")
    assert (source.class_names, len(source.train), len(source.test)) == (WORDS, 6, 6)


@pytest.mark.parametrize("labels", [[0, 2, 1, 2], ["cat", "emu", "dog", "emu"]])
@pytest.mark.parametrize("cell", ["bytes", "path", "both"])
def test_parquet_from_pandas(tmp_path, labels, cell):
    arrays = pixels(4)
    paths = write_pngs(tmp_path / "pngs", arrays)
    images = {
        "bytes": [png(a) for a in arrays],
        "path": paths,
        "both": [{"bytes": png(a), "path": p} for a, p in zip(arrays, paths, strict=True)],
    }[cell]
    pandas.DataFrame({"image": images, "label": labels}).to_parquet(tmp_path / "train.parquet")
    source = load(tmp_path / "train.parquet", validation=0.5)
    equal(source.train, arrays, [0, 2, 1, 2])
    assert source.class_names == (WORDS if labels[0] == "cat" else ()) and source.num_classes == 3


def test_a_csv_of_paths_beside_its_images(tmp_path):
    arrays, others = pixels(3), pixels(2, seed=1)
    train = pandas.DataFrame({"path": write_pngs(tmp_path / "a", arrays), "label": ["emu", "cat", "dog"]})
    test = pandas.DataFrame({"path": write_pngs(tmp_path / "b", others), "label": ["dog", "dog"]})
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    source = load(tmp_path)
    equal(source.train, arrays, [2, 0, 1])
    equal(source.test, others, [1, 1])
    assert source.class_names == WORDS
    alone = load(tmp_path / "train.csv", validation=0.5)
    equal(alone.train, arrays, [2, 0, 1])
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(UsageError, match=r"path\[1\] is missing: there is no file .*a/1\.png; mend the path"):
        load(tmp_path / "train.csv", validation=0.5)


def test_arrays_in_a_file_and_in_a_folder(tmp_path):
    arrays, others = pixels(4), pixels(2, seed=1)
    parts = {"x_train": arrays, "y_train": [0, 1, 2, 1], "x_test": others, "y_test": [[2], [0]]}
    np.savez(tmp_path / "set.npz", **parts)
    (tmp_path / "set").mkdir()
    for name, value in parts.items():
        np.save(tmp_path / "set" / f"{name}.npy", value)
    for name in ("set.npz", "set"):
        source = load(tmp_path / name)
        equal(source.train, arrays, [0, 1, 2, 1])
        equal(source.test, others, [2, 0])
        assert (source.num_classes, source.channels) == (3, 3)
    sources.find(str(tmp_path / "set"))


def test_tensors_of_torch(tmp_path):
    arrays = torch.from_numpy(pixels(4)).permute(0, 3, 1, 2)
    labels = torch.tensor([0, 1, 2, 1])
    for saved in ((arrays, labels), {"train": (arrays / 255, labels)}, {"images": arrays, "labels": labels}):
        torch.save(saved, tmp_path / "set.pt")
        source = load(tmp_path / "set.pt", validation=0.5)
        assert torch.equal(source.train.images, arrays) and torch.equal(source.train.labels, labels)


def test_grey_arrays_and_words(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=np.zeros((2, 5, 5)), train_labels=["dog", "cat"])
    source = load(tmp_path / "set.npz", validation=0.5)
    assert (source.train.images.shape, source.channels) == ((2, 1, 5, 5), 1)
    assert (source.class_names, source.train.labels.tolist()) == (("cat", "dog"), [1, 0])


class Planted:
    def __reduce__(self):
        return (exit, ("ran",))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": [1], "b": [2]}, "no images with labels that demp knows by name; it has a, b; name them x_train"),
        ({"x": np.zeros((2, 4)), "y": [0, 1]}, "an array of 2 x 4 is no set of images; give N x H x W"),
        ({"x": np.full((2, 4, 4), 3.5), "y": [0, 1]}, "images from 3.5 to 3.5; give bytes from 0 to 255, or floats"),
        ({"x": np.zeros((2, 4, 4)), "y": [0]}, "2 images and 1 labels; give as many of both"),
        ({"x": np.zeros((2, 4, 4)), "y": [0.5, 1]}, "labels are not one whole number or word per image"),
        ({"x": np.array([Planted()]), "y": [0]}, "cannot be read: "),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, message):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        load(tmp_path / "set.npz", validation=0.5)


def test_files_that_cannot_be_a_set(tmp_path):
    torch.save({"x": Planted()}, tmp_path / "set.pt")
    np.save(tmp_path / "one.npy", np.zeros((2, 4, 4)))
    (tmp_path / "notes.txt").write_text("none")
    pandas.DataFrame({"image": [[[0, 1]]], "label": [0]}).to_parquet(tmp_path / "lists.parquet")
    for name, message in (
        ("set.pt", "cannot be read"), ("one.npy", "is one array; put one.npy into a folder with its labels"),
        ("notes.txt", "is no file of images and labels that demp reads; it reads .csv, .parquet"),
        ("lists.parquet", "no images; store the bytes of image files or their paths"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            load(tmp_path / name, validation=0.5)
