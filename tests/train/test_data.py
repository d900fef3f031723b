import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from demp.errors import UsageError
from demp.train import AugmentConfig, DataConfig, digits, sources
from demp.train.data import PIECE, Data, epoch_order, load_test_set, prepare, statistics, step_indices
from demp.train.facts import Facts


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def images(count, side=6, channels=3, seed=0):
    shape = (count, side, side, channels) if channels == 3 else (count, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_split(folder, name, pixels, labels, image="img", label="label", classes=None):
    folder.mkdir(exist_ok=True)
    kind = datasets.ClassLabel(num_classes=classes) if classes else datasets.Value("int64")
    features = datasets.Features({image: datasets.Image(), label: kind})
    rows = {image: [Image.fromarray(p) for p in pixels], label: list(labels)}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / f"{name}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path):
    """20 coloured training images and 6 of the split validation, 3 classes."""
    path = tmp_path / "set"
    write_split(path, "train", images(20), [i % 3 for i in range(20)], classes=3)
    write_split(path, "validation", images(6, seed=1), [0, 1, 2] * 2, classes=3)
    return path


def data(config, batch_size=4, seed=0, **options):
    return Data(config, batch_size=batch_size, seed=seed, device="cpu", **options)


def test_digits_are_split_by_class_and_never_change():
    source = sources.load(DataConfig(name="digits"))
    assert (len(source.train), len(source.test), source.channels) == (1442, 355, 1)
    assert source.train.labels.bincount().tolist() == [
        143, 146, 142, 147, 145, 146, 145, 144, 140, 144,
    ]  # fmt: skip
    assert source.test.labels.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    assert int(source.test.images.long().sum()) == int(sources.load(DataConfig(name="digits")).test.images.long().sum())


def test_digits_are_scikit_learns_whichever_way_they_are_read(monkeypatch):
    read = digits.values()
    assert read.shape == (1797, 65) and read.dtype == torch.float64
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    assert torch.equal(digits.values(), read)


def test_a_validation_share_is_held_out_evenly_and_takes_the_place_of_the_test_split():
    whole = sources.load(DataConfig(name="digits"))
    found = data(DataConfig(name="digits", validation=0.25))
    train, test = found.train, found.test.split
    kept, held = train.labels.bincount(), test.labels.bincount()
    assert torch.equal(kept + held, whole.train.labels.bincount())
    assert (len(train), len(test)) == (1082, 360)
    assert ((held - 0.25 * (kept + held)).abs() <= 1).all()
    both = torch.cat([train.images, test.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), whole.train.images.flatten(1).unique(dim=0))
    again = data(DataConfig(name="digits", validation=0.25), seed=1)
    assert torch.equal(again.test.split.images, test.images)


@pytest.mark.parametrize("memory_mb", [1024, 0])
def test_what_is_held_out_is_never_trained_on(folder, memory_mb):
    # sorted by class the rows are 0 3 6 .. 18, 1 4 7 .. 19, 2 5 8 .. 17; every fourth of these goes
    held = [1, 5, 9, 13, 17]
    rest = [row for row in range(20) if row not in held]
    found = data(DataConfig(name=str(folder), validation=0.25, memory_mb=memory_mb, image_size=6, workers=0))
    assert isinstance(found.train.images, torch.Tensor) == (memory_mb > 0)
    assert found.tested_on == "validation"
    assert (found.facts.train_size, len(found.test)) == (15, 5)
    (x, labels), *_ = found.test.batches(5)
    assert labels.tolist() == [row % 3 for row in held]
    whole = data(DataConfig(name=str(folder), memory_mb=memory_mb, image_size=6, workers=0))
    assert whole.tested_on == "test"
    facts = found.facts

    def prepared(rows):
        return torch.stack([prepare(whole.train, torch.tensor([row]), facts, whole.device)[0] for row in rows])

    assert torch.equal(x, prepared(held))
    trained = torch.cat([labels for _, labels in found.train_batches(0, 4)])[:15]
    assert trained.bincount().tolist() == torch.tensor([row % 3 for row in rest]).bincount().tolist()
    probed = torch.cat([x for x, _ in found.labelled_batches(0)])
    assert len(probed) == 15
    assert torch.equal(probed.flatten(1).unique(dim=0), prepared(rest).flatten(1).unique(dim=0))


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.04, "data.validation is 0.04 of 20 training images, not one whole image"),
        (1.0, "data.validation is 1.0; give a share of at least 0 and below 1"),
        (-0.1, "below 1"),
        (float("nan"), "below 1"),
    ],
)
def test_a_share_that_leaves_nothing_is_refused(folder, share, message):
    with pytest.raises(UsageError, match=message):
        data(DataConfig(name=str(folder), validation=share))


def test_digits_are_tested_on_the_split_that_was_asked_for():
    whole = sources.load(DataConfig(name="digits"))
    assert sources.load(DataConfig(name="digits", test_split="train")).test is whole.train
    with pytest.raises(UsageError, match="data set digits has no split 'tset'; it has train, test"):
        sources.load(DataConfig(name="digits", test_split="tset"))


def test_every_epoch_is_a_permutation_and_batches_cross_its_end():
    size, batch = 10, 4
    stream = torch.cat([step_indices(size, batch, 3, step) for step in range(10)])
    for epoch in range(4):
        part = stream[epoch * size : (epoch + 1) * size]
        assert part.sort().values.tolist() == list(range(size))
        assert torch.equal(part, epoch_order(size, 3, epoch))
    assert not torch.equal(stream[:size], stream[size : 2 * size])
    assert len(step_indices(3, 8, 0, 5)) == 8


def test_a_folder_of_parquet_is_read_whole(folder):
    found = data(DataConfig(name=str(folder)))
    pixels = torch.from_numpy(images(20)).permute(0, 3, 1, 2)
    assert torch.equal(found.train.images, pixels)
    assert found.train.labels.tolist() == [i % 3 for i in range(20)]
    facts = found.facts
    assert (facts.num_classes, facts.channels, facts.image_size, len(found.test)) == (3, 3, 6, 6)
    assert_close(torch.tensor(facts.mean), (pixels / 255.0).mean(dim=(0, 2, 3)))
    assert_close(torch.tensor(facts.std), (pixels / 255.0).std(dim=(0, 2, 3), correction=0))
    assert Facts.from_dict(facts.to_dict()) == facts


def test_the_data_folder_is_left_as_it_is(folder, private_cache):
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    data(DataConfig(name=str(folder)))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    assert any(private_cache.iterdir())


def test_test_images_are_normalised_not_augmented(folder):
    augment = AugmentConfig(crop="pad", padding=2, flip=True)
    found = data(DataConfig(name=str(folder), augment=augment))
    (x, labels), (rest, _) = found.test.batches(4)
    raw = torch.from_numpy(images(6, seed=1)).permute(0, 3, 1, 2)[:4] / 255.0
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (found.facts.mean, found.facts.std))
    assert_close(x, (raw - mean) / std)
    assert labels.tolist() == [0, 1, 2, 0]
    assert len(rest) == 2


def equal_batches(first, second):
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in pairs)


@pytest.mark.parametrize("memory_mb", [1024, 0])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_resuming_at_any_step_sees_the_same_batches(folder, memory_mb, crop):
    augment = AugmentConfig(crop=crop, padding=2, flip=True)
    config = DataConfig(name=str(folder), memory_mb=memory_mb, workers=0, image_size=6, augment=augment)
    straight = list(data(config).train_batches(0, 9))
    assert equal_batches(straight[4:], data(config).train_batches(4, 9))
    assert not equal_batches(straight, data(config, seed=1).train_batches(0, 9))


@pytest.mark.parametrize("mixup", [0.0, 0.5])
@pytest.mark.parametrize("crop", ["pad", "resized"])
def test_processes_that_share_a_streaming_set_see_what_one_sees(folder, crop, mixup):
    augment = AugmentConfig(crop=crop, padding=2, flip=True, mixup_alpha=mixup)
    config = DataConfig(name=str(folder), memory_mb=0, workers=0, image_size=6, augment=augment)
    whole = list(data(config).train_batches(0, 4))
    for rank in range(2):
        share = list(data(config, share=(rank, 2)).train_batches(0, 4))
        assert equal_batches([(x[rank::2], y[rank::2]) for x, y in whole], share)


def test_worker_processes_change_nothing(folder):
    augment = AugmentConfig(crop="resized", flip=True)
    config = DataConfig(name=str(folder), memory_mb=0, image_size=4, augment=augment)
    by_workers = list(data(config).train_batches(0, 6))
    alone = DataConfig(name=str(folder), memory_mb=0, image_size=4, workers=0, augment=augment)
    assert equal_batches(by_workers, data(alone).train_batches(0, 6))


def test_probes_are_training_images_drawn_by_their_seed(folder):
    config = DataConfig(name=str(folder), probe_size=8, probe_batches=2)
    found = data(config)
    first, again, other = ([x for x, _ in found.labelled_batches(seed)] for seed in (5, 5, 6))
    assert [len(x) for x in first] == [8, 8]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    every = [x.sum().item() for b, _ in found.labelled_batches(0) for x in b]
    ((all_rows, _),) = data(DataConfig(name=str(folder), probe_size=20)).labelled_batches(0)
    assert set(every) <= {x.sum().item() for x in all_rows}


def test_a_small_set_gives_fewer_probes():
    found = data(DataConfig(name="digits", probe_size=1000))
    assert [len(x) for x, _ in found.labelled_batches(0)] == [PIECE] * (1442 // PIECE) + [1442 % PIECE]
    assert [len(x) for x, _ in found.labelled_batches(0, whole=True)] == [1000, 442]


def test_a_check_comes_in_pieces_of_the_same_images():
    found = data(DataConfig(name="digits", probe_size=300, probe_batches=2))
    pieces = [x for x, _ in found.labelled_batches(3)]
    assert [len(x) for x in pieces] == [PIECE] * 4 + [600 - 4 * PIECE]
    whole = [x for x, _ in found.labelled_batches(3, whole=True)]
    assert torch.equal(torch.cat(pieces), torch.cat(whole)[:600])


def test_statistics_are_exact():
    pixels = torch.randint(256, (50, 2, 7, 7), dtype=torch.uint8)
    mean, std = statistics(pixels)
    assert_close(torch.tensor(mean), (pixels / 255.0).mean(dim=(0, 2, 3)))
    assert_close(torch.tensor(std), (pixels / 255.0).std(dim=(0, 2, 3), correction=0))


def test_images_of_many_sizes_need_a_size(tmp_path):
    path = tmp_path / "set"
    mixed = [*images(2, side=6), *images(2, side=9)]
    write_split(path, "train", mixed, [0, 1, 0, 1])
    write_split(path, "test", mixed, [0, 1, 0, 1])
    with pytest.raises(UsageError, match=r"image 0 is 6 x 6, image 2 is 9 x 9; set data.store"):
        data(DataConfig(name=str(path)))
    found = data(DataConfig(name=str(path), store_size=5))
    assert found.train.images.shape == (4, 3, 5, 5)
    streamed = data(DataConfig(name=str(path), memory_mb=0, workers=0, image_size=4))
    assert next(streamed.train_batches(0, 1))[0].shape == (4, 3, 4, 4)
    with pytest.raises(UsageError, match=r"stream; set data.image_size"):
        data(DataConfig(name=str(path), memory_mb=0))


def test_grey_images_have_one_channel(tmp_path):
    path = tmp_path / "set"
    write_split(path, "train", images(4, channels=1), [0, 1, 0, 1], image="image")
    write_split(path, "test", images(4, channels=1), [0, 1, 0, 1], image="image")
    found = data(DataConfig(name=str(path)))
    assert (found.facts.channels, found.facts.num_classes) == (1, 2)


def test_a_saved_dataset_and_a_single_file(tmp_path, folder):
    datasets.load_dataset(str(folder)).save_to_disk(tmp_path / "saved")
    assert len(data(DataConfig(name=str(tmp_path / "saved"))).test) == 6
    file = next(folder.glob("train*.parquet"))
    found = data(DataConfig(name=str(file), test_split="train"))
    assert len(found.test) == 20


def test_image_size_resizes_and_head_may_be_larger(folder):
    found = data(DataConfig(name=str(folder), image_size=12, num_classes=5))
    assert next(found.train_batches(0, 1))[0].shape == (4, 3, 12, 12)
    assert found.facts.num_classes == 5


def test_a_test_set_for_a_trained_model(folder):
    facts = data(DataConfig(name=str(folder))).facts
    assert len(load_test_set(DataConfig(name=str(folder)), facts, "cpu")) == 6
    with pytest.raises(UsageError, match="digits has 1 channels, the model reads 3"):
        load_test_set(DataConfig(name="digits"), facts, "cpu")


def test_hub_names_are_asked_for_by_their_full_name(monkeypatch, folder):
    asked = {}

    def load_dataset(**request):
        asked.update(request)
        return original(str(folder))

    original = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data(DataConfig(name="cifar10"))
    assert asked == {"path": "uoft-cs/cifar10"}


# What is wrong with a data set ---------------------------------------------------------------------


def bad(tmp_path, kind):
    path = tmp_path / "set"
    labels = {"negative": [0, -1, 1, 0], "outside": [0, 1, 2, 7]}.get(kind, [0, 1, 0, 1])
    write_split(path, "train", images(4), [0, 1, 2, 2])
    if kind != "no test":
        write_split(path, "test", images(4), labels)
    if kind == "empty":
        write_split(path, "test", [], [])
    if kind == "corrupt":
        file = next(path.glob("test*"))
        file.write_bytes(file.read_bytes()[:200])
    if kind == "no image":
        broken = io.BytesIO(b"not an image").getvalue()
        rows = {"img": [{"bytes": broken, "path": None}] * 2, "label": [0, 1]}
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(path / "test-00000-of-00001.parquet")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("negative", r"labels of -1, which means unlabelled; set data.test_split"),
        ("outside", r"a label 7, but the head has 3 classes \(labels 0 to 2\)"),
        ("empty", "the split 'test' is empty"),
        ("corrupt", "a file in it cannot be read"),
        ("no test", "no split to test on, only train; set data.test_split .* or data.validation=0.1"),
        ("no image", r"the image img\[0\] cannot be decoded"),
    ],
)
def test_faulty_folders(tmp_path, kind, message):
    name = bad(tmp_path, kind)
    with pytest.raises(UsageError, match=message):
        data(DataConfig(name=name, num_classes=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_column": "pixels"}, "image_column is 'pixels', not in data set .* img, label"),
        ({"label_column": "img"}, "does not hold one whole number or word per image"),
        ({"train_split": "training"}, "no split 'training'; it has train, validation"),
        ({"test_split": "test"}, "no split 'test'; it has train, validation"),
    ],
)
def test_wrong_columns_and_splits(folder, change, message):
    with pytest.raises(UsageError, match=message):
        data(DataConfig(name=str(folder), **change))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", "unknown data set 'cifr10'; did you mean 'cifar10'"),
        ("nonsense", "known names: digits, mnist"),
        ("./nowhere", "there is no folder ./nowhere"),
        ("/nowhere/at/all", "there is no folder /nowhere/at/all"),
        ("a/b/c", "there is no folder a/b/c"),
        ("flowers.csv", "there is no file flowers.csv"),
    ],
)
def test_names_that_lead_nowhere(name, message):
    with pytest.raises(UsageError, match=message):
        data(DataConfig(name=name))


def test_a_folder_without_data(tmp_path):
    with pytest.raises(UsageError, match="holds no data files"):
        data(DataConfig(name=str(tmp_path)))


def test_a_hub_that_cannot_be_reached_is_said_so(monkeypatch):
    def load_dataset(**request):
        raise ConnectionError(f"Couldn't reach {request['path']!r} on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match=r"'some/set': .* the hub cannot be reached") as caught:
        data(DataConfig(name="some/set"))
    assert "\n" not in str(caught.value)


def test_reading_is_quiet(folder, capfd):
    data(DataConfig(name=str(folder)))
    assert capfd.readouterr() == ("", "")


def test_no_files_are_written_next_to_the_code(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = set(Path.cwd().iterdir())
    data(DataConfig(name=str(folder)))
    assert set(Path.cwd().iterdir()) == before
