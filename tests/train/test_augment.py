import pytest
import torch
from torch.testing import assert_close

from demp.errors import UsageError
from demp.train import AugmentConfig, augment
from demp.train.facts import Facts
from demp.train.seeds import generator


def draw(*purpose):
    return generator("cpu", 0, *purpose)


def facts(mean, std, normalize="dataset", size=0):
    return Facts("numbers", 2, len(mean), size, mean, std, normalize, store_size=0, train_size=1)


def numbered(count=6, channels=2, side=5):
    """Images whose every pixel has its own value."""
    total = count * channels * side * side
    return torch.arange(total, dtype=torch.float32).view(count, channels, side, side)


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_pad_crop_cuts_a_window_of_the_padded_image(mode):
    x = numbered()
    out = augment.pad_crop(x, 2, mode, draw())
    pad = torch.nn.functional.pad(x, (2,) * 4, mode="constant" if mode == "zeros" else mode)
    windows = {(r, c): pad[:, :, r : r + 5, c : c + 5] for r in range(5) for c in range(5)}
    places = []
    for row in range(len(x)):
        places += [at for at, window in windows.items() if torch.equal(window[row], out[row])]
    assert len(places) == len(x)
    assert len(set(places)) > 1


def test_pad_crop_refuses_a_reflection_of_more_than_there_is():
    with pytest.raises(UsageError, match="padding is 5, images are 5 x 5"):
        augment.pad_crop(numbered(), 5, "reflect", draw())


def test_mirror_flips_whole_images_about_half_of_the_time():
    x = numbered(count=200)
    out = augment.mirror(x, draw())
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(out, x, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(out, x, strict=True)])
    assert (flipped ^ kept).all()
    assert 70 < flipped.sum() < 130


def test_normalise_by_data_set_and_by_image():
    x = numbered(channels=3) / 450
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    by_set = augment.normalise(x, facts(mean, std))
    assert_close(by_set[:, 2], (x[:, 2] - 0.3) / 0.125)
    each = augment.normalise(x, facts(mean, std, "image")).flatten(1)
    assert_close(each.mean(1), torch.zeros(6), atol=1e-5, rtol=0)
    assert_close(each.std(1, correction=0), torch.ones(6))


def test_an_even_image_stays_finite():
    even = torch.full((2, 1, 4, 4), 0.5)
    assert augment.normalise(even, facts((0.5,), (0.0,), "image")).abs().max() == 0
    assert augment.normalise(even, facts((0.5,), (0.0,))).abs().max() == 0


@pytest.mark.parametrize("crop", ["resized", "scales"])
def test_crop_boxes_lie_in_the_image(crop):
    config = AugmentConfig(crop=crop, min_area=0.1)
    left, top, right, bottom = augment.crop_boxes(config, 500, 30, 40, draw()).unbind(1)
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= 40 + 1e-4).all() and (bottom <= 30 + 1e-4).all()
    area = (right - left) * (bottom - top)
    if crop == "resized":
        assert area.min() > 0.08 * 1200 and area.max() > 0.7 * 1200
    else:
        sides = {round(float(side), 3) for side in right - left}
        assert sides == {round(30 * 224 / 256, 3), round(30 * 224 / 480, 3)}


def test_cutting_the_whole_image_changes_nothing():
    x = torch.rand(3, 3, 8, 8)
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4)
    assert_close(augment.cut_regions(x, boxes, 8), x, atol=1e-5, rtol=0)


def test_cutting_a_corner_shows_that_corner():
    x = torch.rand(2, 1, 8, 8)
    boxes = torch.tensor([[4.0, 0.0, 8.0, 4.0]]).expand(2, 4)
    assert_close(augment.cut_regions(x, boxes, 4), x[:, :, :4, 4:], atol=1e-5, rtol=0)


def test_mixup_sums_images_and_targets_alike():
    x, labels = torch.rand(8, 1, 4, 4), torch.arange(8)
    mixed, targets = augment.mix(x, labels, 8, AugmentConfig(mixup_alpha=0.4), draw())
    assert_close(targets.sum(1), torch.ones(8))
    assert_close(mixed, torch.einsum("bk,kchw->bchw", targets, x))


def test_cutmix_target_is_the_share_of_pixels():
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 10, 10)
    mixed, targets = augment.mix(x, torch.arange(8), 8, AugmentConfig(cutmix_alpha=1.0), draw())
    counted = torch.stack([(mixed == k).float().mean(dim=(1, 2, 3)) for k in range(8)], dim=1)
    assert_close(targets, counted)
    assert 0 < targets[0, 0] < 1


def test_without_mixing_labels_stay_whole_numbers():
    x, labels = torch.rand(4, 1, 4, 4), torch.arange(4)
    mixed, targets = augment.mix(x, labels, 4, AugmentConfig(), draw())
    assert mixed is x and targets is labels


def test_augmentation_is_a_function_of_its_generator_alone():
    config = AugmentConfig(crop="resized", flip=True, randaugment_ops=2)
    images = torch.randint(256, (4, 3, 12, 12), dtype=torch.uint8)
    known = facts((0.5,) * 3, (0.2,) * 3, size=8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment.augment(images, config, known, draw("step", 3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = augment.augment(images, config, known, draw("step", 3))
    other = augment.augment(images, config, known, draw("step", 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 3, 8, 8)


def test_randaugment_takes_grey_images():
    config = AugmentConfig(randaugment_ops=2)
    out = augment.randaugment(torch.rand(3, 1, 8, 8), config, draw())
    assert out.shape == (3, 1, 8, 8)


def test_resize_keeps_a_image_of_the_right_size():
    x = torch.rand(2, 1, 6, 6)
    assert augment.resize(x, 6) is x
    assert augment.resize(x, 12).shape == (2, 1, 12, 12)


@pytest.mark.parametrize("crop", ["pad", "resize-pad"])
def test_padding_comes_before_or_after_the_new_size(crop):
    config = AugmentConfig(crop=crop, padding=3, padding_mode="zeros")
    images = torch.randint(256, (4, 3, 10, 10), dtype=torch.uint8)
    known = facts((0.5,) * 3, (0.2,) * 3, size=20)
    out = augment.augment(images, config, known, draw("step"))
    x = augment.normalise(augment.to_unit(images), known)
    if crop == "pad":
        twin = augment.resize(augment.pad_crop(x, 3, "zeros", draw("step")), 20)
    else:
        twin = augment.pad_crop(augment.resize(x, 20), 3, "zeros", draw("step"))
    assert torch.equal(out, twin)
