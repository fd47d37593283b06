"""Photographs of a telephone: decoded once, no larger than a model reads them, by
threads that hold a few at a time; damaged ones cost their own features and no more."""

import io
import threading
import time
import warnings
import weakref
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP as OpenCLIP
from PIL import ExifTags, Image, ImageDraw
from sklearn.datasets import load_sample_image
from tiny_models import TEXT
from torchvision.transforms import Compose

from clipadapt import CLIP, LPCLIP, CoReg, FeatureStore, ImageSet, load_clip
from clipadapt.clip import model as model_module
from clipadapt.clip.features import StoredCLIP, readable
from clipadapt.images import pictures, sets
from clipadapt.images.pictures import check_image, read_image, to_rgb
from clipadapt.images.sets import draw_of
from clipadapt.images.views import strong_view, to_spare, weak_view

SAMPLES = "china.jpg", "flower.jpg"
NAMES = ["pagoda", "flower"]


def photograph(number: int, width: int, height: int) -> Image.Image:
    """A part of a photograph of scikit-learn, enlarged, with the grain of a camera."""
    whole = Image.fromarray(load_sample_image(SAMPLES[number % 2]))
    left, top = 40 * (number // 2), 20 * (number // 2)
    part = whole.crop((left, top, left + 480, top + 360))
    large = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(number).integers(-6, 7, (height, width, 1), np.int16)
    return Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))


def file_of(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def twelve_megapixels(tmp_path_factory):
    """Three files of 12 million pixels, one of them upright."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, size in enumerate([(4000, 3000), (4000, 3000), (3000, 4000)]):
        photograph(number, *size).save(folder / f"{number}.jpg", quality=90)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def wide_clip():
    """A random vision transformer that reads 224 pixels, as ViT-B/32 does, and what
    decodes files in full for it."""
    vision = {"image_size": 224, "patch_size": 32, "width": 192, "layers": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OpenCLIP(64, {**vision, "head_width": 64}, TEXT)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    preprocess = open_clip.image_transform(224, is_train=False, mean=mean, std=std)
    tokenizer = open_clip.SimpleTokenizer(context_length=32)
    return [CLIP(model, preprocess, tokenizer, exact=exact) for exact in (False, True)]


@pytest.fixture
def small(tmp_path):
    """A folder of 12 small photographs, two classes."""
    for number in range(12):
        name = f"{NAMES[number % 2]}/{number}.jpg"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph(number, 320, 240).save(tmp_path / name)
    return ImageSet.from_folder(tmp_path)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, in this list."""
    names, decode = [], pictures._decode

    def watched(file, name, *args):
        names.append(name)
        return decode(file, name, *args)

    monkeypatch.setattr(pictures, "_decode", watched)
    return names


# 1. No larger than it is needed


def test_a_large_photograph_is_decoded_small_and_looks_the_same(
    twelve_megapixels, wide_clip
):
    shrinking, exact = wide_clip
    assert (shrinking.side, exact.side) == (336, None)
    for path in twelve_megapixels:
        assert min(read_image(path, side=336).size) == 3000 / 8
        assert (
            min(read_image(path, side=376).size) == 3000 / 4
        )  # an eighth is too small
    small, full = (each.encode_image(twelve_megapixels) for each in wide_clip)
    assert (small * full).sum(1).min() > 0.999
    others = small @ full.T - torch.eye(len(full))
    assert others.max() < 0.999, "and another photograph does not"


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_the_least_that_is_left_gives_the_same_features(tmp_path, wide_clip, scale):
    """Sizes at which nothing is to spare: 336 pixels are left of the shorter side."""
    paths = [tmp_path / f"{number}.jpg" for number in range(4)]
    for number, path in enumerate(paths):
        photograph(number, 448 * scale, 336 * scale).save(path, quality=90)
        assert read_image(path, side=wide_clip[0].side).size == (448, 336)
    small, full = (each.encode_image(paths) for each in wide_clip)
    cosines = small @ full.T
    assert cosines.diagonal().min() > 0.9995
    others = cosines[~torch.eye(4, dtype=bool)]
    assert 1 - others.max() > 10 * (1 - cosines.diagonal().min())


@pytest.mark.parametrize("side", [1, 7, 28, 64, 100])
@pytest.mark.parametrize("size", [(200, 200), (447, 111), (64, 129), (100, 801)])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000"])
def test_the_shorter_side_is_as_long_as_asked_for(size, side, kind):
    content = file_of(photograph(0, *size), kind)
    read, full = read_image(content, side=side), read_image(content)
    assert full.size == size and min(read.size) >= min(side, min(size))
    scale = round(full.width / read.width)
    assert scale in (1, 2, 4, 8)
    if kind == "JPEG":
        assert scale == 8 or min(size) // (2 * scale) < side, "it could be smaller"


def test_kinds_of_jpeg_and_notes_in_them():
    """Grey, progressive, of four inks, of several pictures, and one that lies."""
    upright = photograph(0, 800, 600)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    several = {"save_all": True, "append_images": [photograph(1, 800, 600)]}
    expected = np.asarray(upright.resize((200, 150), Image.Resampling.BOX), int)
    for content in (
        file_of(upright),
        file_of(upright, progressive=True),
        file_of(upright.convert("CMYK")),
        file_of(upright, "MPO", **several),
        file_of(turned, exif=exif),
    ):
        seen = read_image(content, side=150)
        assert seen.size == (200, 150) and seen.mode == "RGB"
        assert np.abs(np.asarray(seen, int) - expected).mean() < 4
    grey = read_image(file_of(upright.convert("L")), side=150)
    assert grey.size == (200, 150) and grey.mode == "RGB"


def test_what_cannot_be_decoded_smaller_is_decoded_whole():
    picture = photograph(0, 320, 240)
    for kind in ("PNG", "WEBP", "TIFF", "BMP", "GIF"):
        assert read_image(file_of(picture, kind), side=10).size == (320, 240)
    once = file_of(picture, "JPEG2000", num_resolutions=2)
    assert read_image(once, side=10).size == (160, 120), "it can be halved only once"
    never = file_of(picture, "JPEG2000", num_resolutions=1)
    assert read_image(never, side=10).size == (320, 240)
    assert read_image(picture, side=10).size == (320, 240)


def test_a_set_hands_the_side_down_to_the_file(tmp_path):
    photograph(0, 800, 600).save(tmp_path / "1.jpg")
    images = ImageSet([tmp_path / "1.jpg"])
    sizes = []
    noting = lambda image, rng: sizes.append(image.size) or image
    view = images.subset([0, 0]).view(noting)
    assert images.read(0, 150).size == images.subset([0]).read(-1, 150).size
    view.subset([1]).read(0, 150), view[1]
    assert sizes == [(200, 150), (800, 600)] and images.read(0, 150).size == (200, 150)
    with pytest.raises(IndexError, match="image 1 of 1"):
        images.read(1)


def test_an_rgb_picture_is_not_copied_until_it_is_drawn_on():
    mine = photograph(0, 64, 48)
    before = np.array(mine)
    for change in (
        lambda image: ImageDraw.Draw(image).rectangle((0, 0, 63, 47), "red"),
        lambda image: image.paste((1, 2, 3), (0, 0, 9, 9)),
        lambda image: image.putpixel((5, 5), (1, 2, 3)),
    ):
        seen = to_rgb(mine)
        assert seen is not mine and seen.im is mine.im
        change(seen)
        assert np.array_equal(mine, before) and not np.array_equal(seen, before)
        seen = to_rgb(mine)
        change(mine)
        assert np.array_equal(seen, before)
        mine = Image.fromarray(before)


# 2. Decoded once


@pytest.mark.parametrize("shrunk", [True, False])
def test_views_are_those_of_each_image_alone(small, shrunk):
    clip = load_clip(device="cpu", exact=not shrunk)
    views = [(None, 0), (weak_view(32), 3), (strong_view(32), 0), (weak_view(32), 4)]
    together = torch.cat([*clip.encode_views(small, views, batch_size=5)], 1)
    assert together.shape == (4, 12, clip.embed_dim)
    for (transform, seed), features in zip(views, together):
        seen = small if transform is None else small.view(transform, seed)
        assert torch.equal(clip.encode_image(seen, batch_size=5), features)
    assert not torch.equal(together[1], together[3])
    few = [*clip.encode_views(small, views, indices=[7, 2])]
    assert torch.allclose(few[0], together[:, [7, 2]], atol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        clip.encode_views(small, [])


def test_a_view_that_draws_on_its_picture_leaves_the_others_alone(clip):
    pages = ImageSet([Image.new("RGB", (32, 32))] * 3)

    def white(image, rng):
        image.paste((255, 255, 255), (0, 0, 32, 32))
        return image

    first, painted, last = next(
        iter(clip.encode_views(pages, [(None, 0), (white, 0), (None, 0)]))
    )
    assert torch.equal(first, last) and not torch.equal(first, painted)


@pytest.mark.parametrize("views", [4, None])
def test_lpclip_decodes_an_image_once_for_all_its_views(clip, small, decoded, views):
    options = {"templates": "single", "views": views, "epochs": 1}
    LPCLIP(clip, small.classnames, **options).fit(small)
    assert len(decoded) == 12 * (1 if views else 2), "fresh views read it once an epoch"


def test_coreg_on_features_decodes_an_image_once(clip, small, decoded):
    options = {"templates": "single", "student": "head", "views": 2, "epochs": 1}
    method = CoReg(clip, small.classnames, **options).fit(small)
    assert sorted(set(decoded)) == sorted(map(str, small.images))
    once = len(decoded)
    decoded.clear()
    method.image_size_ = clip.image_size
    method._new_views(small, 8)
    assert len(decoded) == 12, "17 versions of an image"
    assert once <= 24, "what the method begins with, and the views"


def test_drawn_views_are_the_stored_ones_and_read_an_image_once(clip, small, decoded):
    method = CoReg(clip, small.classnames, student="head", views=2)
    method.image_size_ = clip.image_size
    rows, batch = torch.tensor([[0, 1], [3, 4], [2, 0]]), torch.tensor([7, 2])
    stored = method._new_views(small, 2).take(rows, batch)
    decoded.clear()
    drawn = method._new_views(small, 2, keep=False).take(rows, batch)
    assert len(decoded) == 2 and (drawn - stored).abs().max() < 1e-5


def test_a_photograph_more_changes_no_view_of_the_others(tmp_path):
    for number in (1, 2):
        photograph(number, 64, 48).save(tmp_path / f"{number}.png")
    before = ImageSet.from_folder(tmp_path)
    seen = [np.asarray(image) for image, _ in before.view(strong_view(32), 5)]
    photograph(0, 64, 48).save(tmp_path / "0.png")
    after = ImageSet.from_folder(tmp_path)
    again = [np.asarray(image) for image, _ in after.view(strong_view(32), 5)]
    assert np.array_equal(seen, again[1:])
    chosen = after.subset([2]).view(strong_view(32), 5)
    assert np.array_equal(chosen[0][0], seen[1])


def test_the_draw_of_arrays_is_their_place_and_of_files_their_name(tmp_path):
    arrays = ImageSet(np.zeros((5, 4, 4), np.uint8))
    assert [draw_of(arrays.images, i) for i in range(5)] == [0, 1, 2, 3, 4]
    assert draw_of(arrays.subset([4, 2]).images, 1) == 1
    here, there = ImageSet(["a/cat.png", "a/dog.png"]), ImageSet(["b/dog.png"])
    assert (
        draw_of(here.images, 1) == draw_of(there.images, 0) != draw_of(here.images, 0)
    )
    assert draw_of(here.subset([1]).images, 0) == draw_of(here.images, 1)


# 3. Damaged files


def in_the_middle(content: bytes) -> bytes:
    place = len(content) // 2
    return (
        content[:place]
        + bytes(b ^ 255 for b in content[place : place + 40])
        + (content[place + 40 :])
    )


def test_one_damaged_image_among_many_costs_its_own_features_only(clip, small):
    bad = small.images[7]
    whole = clip.encode_image(small)
    bad.write_bytes(bad.read_bytes()[:2000])
    small.images[3].unlink()
    for batch_size in (64, 5, 1):
        damaged = {}
        features = torch.cat([*clip.encode_batches(small, batch_size, damaged)])
        assert sorted(damaged) == [3, 7]
        assert damaged[7].startswith(f"{bad}: cannot be read as an image")
        assert "no such image file" in damaged[3]
        assert features[[3, 7]].isnan().all()
        kept = [i for i in range(12) if i not in damaged]
        assert torch.allclose(features[kept], whole[kept], atol=1e-5)
    with pytest.raises(ValueError, match=f"{bad.name}: cannot be read"):
        clip.encode_image(small.subset([6, 7]))
    views = [(None, 0), (weak_view(32), 1)]
    damaged = {}
    [both] = clip.encode_views(small, views, damaged=damaged)
    assert both.isnan().all(2).nonzero()[:, 1].tolist() == [3, 7, 3, 7]
    damaged = {}
    [few] = clip.encode_views(small, views, damaged=damaged, indices=[0, 7, 1])
    assert list(damaged) == [1] and few.isnan().any(2).sum() == 2


def test_a_batch_in_which_nothing_can_be_read(clip):
    damaged = {}
    images = ImageSet([b"no image", Image.new("RGB", (32, 32)), b"nothing"])
    features = [*clip.encode_batches(images, 1, damaged)]
    assert sorted(damaged) == [0, 2] and [len(each) for each in features] == [1, 1, 1]
    assert [each.isnan().all().item() for each in features] == [True, False, True]


@pytest.mark.parametrize(
    "kind", ["JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000"]
)
def test_listing_finds_what_was_cut_off_and_decodes_nothing_else(
    tmp_path, decoded, kind
):
    content = file_of(photograph(0, 320, 240), kind)
    (tmp_path / "whole").write_bytes(content)
    check_image(tmp_path / "whole")
    assert not decoded
    for share in (0.4, 0.9, 0.99):
        (tmp_path / "cut").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="cut: cannot be read as an image"):
            check_image(tmp_path / "cut")


def test_the_end_of_a_small_picture_in_the_header_is_not_the_end(tmp_path):
    """A photograph in whose notes a small JPEG lies, cut off, and 1 MB behind one."""
    picture, comment = photograph(0, 320, 240), file_of(photograph(0, 64, 48))
    content = file_of(picture, comment=comment)
    assert comment in content[:10_000]
    (tmp_path / "cut.jpg").write_bytes(content[:-1000])
    with pytest.raises(ValueError, match="cut.jpg: cannot be read as an image"):
        check_image(tmp_path / "cut.jpg")
    (tmp_path / "film.jpg").write_bytes(content + bytes(10**6))
    check_image(tmp_path / "film.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "JPEG2000"])
def test_whatever_a_file_holds_it_is_read_smaller_or_named(tmp_path, kind):
    content = file_of(photograph(0, 48, 36), kind)
    rng, path = np.random.default_rng(0), tmp_path / "mutated"
    for _ in range(100):
        mutated = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 8)):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        for read in (check_image, lambda *given: read_image(*given, side=8)):
            try:
                read(path, 10**6)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ")


def test_damage_in_the_middle_is_found_by_the_first_pass(tmp_path, clip):
    for number in range(4):
        photograph(number, 320, 240).save(tmp_path / f"{number}.png")
    bad = tmp_path / "2.png"
    bad.write_bytes(in_the_middle(bad.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = ImageSet.from_folder(tmp_path)
    damaged = {}
    features = torch.cat([*clip.encode_batches(images, damaged=damaged)])
    assert list(damaged) == [2] and damaged[2].startswith(f"{bad}: cannot be read")
    assert features.isnan().any(1).tolist() == [False, False, True, False]
    with pytest.warns(UserWarning, match="1 of 4 images skipped:\n.*2.png"):
        checked = ImageSet.from_folder(tmp_path, check="pixels")
    assert len(checked) == 3 and checked.skipped[0][0] == str(bad)
    with pytest.raises(ValueError, match="check must be 'names', 'header' or"):
        ImageSet.from_folder(tmp_path, check="all")


def test_a_folder_can_be_listed_by_its_names(tmp_path, clip):
    """No file is opened; the first pass says the same of what is no image."""
    photograph(0, 320, 240).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"a note")
    with pytest.warns(UserWarning, match="1 of 2 images skipped") as headers:
        ImageSet.from_folder(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = ImageSet.from_folder(tmp_path, check="names")
    assert len(images) == 2 and not images.skipped
    with pytest.warns(UserWarning, match="1 of 2 images skipped") as pixels:
        assert readable(clip, images).skipped[0][0] == str(tmp_path / "1.png")
    assert str(headers[0].message) == str(pixels[0].message)


def test_an_error_with_a_form_of_its_own_is_a_sentence(clip, tmp_path):
    def transform(image, rng):
        raise UnicodeDecodeError("utf-8", b"x", 0, 1, "no text")

    view = [(transform, 0)]
    with pytest.raises(ValueError, match="no text.*; readable"):
        next(clip.encode_views(ImageSet([photograph(0, 64, 48)]), view))


# 4. Threads and memory


def test_never_more_photographs_in_memory_than_threads(clip, monkeypatch):
    """Sixteen threads, and batches of a hundred images."""
    alive, most, lock = [0], [0], threading.Lock()

    def gone():
        with lock:
            alive[0] -= 1

    def slow(item, *options):
        picture = Image.new("RGB", (640, 480))
        with lock:
            alive[0] += 1
            most[0] = max(most[0], alive[0])
        weakref.finalize(picture, gone)
        time.sleep(0.002)
        return picture

    monkeypatch.setattr(sets, "read_image", slow)
    monkeypatch.setattr(model_module, "workers", lambda: 16)
    views = [(None, 0), (weak_view(32), 1), (strong_view(32), 1)]
    images = ImageSet([b""] * 300)
    for batch in clip.encode_views(images, views, batch_size=100):
        assert batch.shape[:2] == (3, 100)
    assert 1 < most[0] <= 16 and alive[0] == 0


def test_two_batches_at_most_are_ahead(clip, monkeypatch):
    read = []
    plain = sets.read_image

    def noting(*args):
        read.append(1)
        return plain(*args)

    monkeypatch.setattr(sets, "read_image", noting)
    images = ImageSet([np.zeros((32, 32), np.uint8)] * 200)
    batches = clip.encode_batches(images, batch_size=10)
    next(batches)
    time.sleep(0.1)
    assert len(read) <= 40
    batches.close()


def test_workers_are_the_processors_that_are_ours(monkeypatch):
    monkeypatch.setattr("os.process_cpu_count", lambda: 200, raising=False)
    assert sets.workers() == 32
    monkeypatch.delattr("os.process_cpu_count")
    for count in (1, 16):
        ours = lambda process, count=count: set(range(count))
        monkeypatch.setattr("os.sched_getaffinity", ours, raising=False)
        assert sets.workers() == count
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert sets.workers() == 1


# What is done faster comes out the same


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 750), (260, 900)])
def test_the_middle_of_a_photograph_is_what_the_preprocessing_gives(wide_clip, size):
    """Of a file: up to rounding; of an array, and exactly: bit for bit."""
    shrinking, exact = wide_clip
    picture = photograph(0, *size)
    expected = np.asarray(
        Compose(shrinking.preprocess.transforms[:-2])(picture), np.int16
    )
    prepared = partial(model_module._prepared, shrinking.preprocess, picture)
    assert np.array_equal(prepared(), expected)
    for resizer in ("Pillow", "PyTorch"):
        difference = np.abs(prepared(resizer=resizer) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.02
    for clip in wide_clip:
        [[cut]] = [model_module.cut_image(clip, ImageSet([picture]), 0, [(None, 0)])]
        assert np.array_equal(cut, expected), "an image that is no file"


def test_bytes_become_floats_as_the_preprocessing_does_it(wide_clip):
    clip, _ = wide_clip
    picture = photograph(1, 224, 224)
    expected, room = clip.preprocess(picture), torch.full((3, 3, 224, 224), torch.nan)
    for given in (None, room, torch.empty(0)):
        batch = clip._input([np.asarray(picture)] * 2, given)
        assert torch.equal(batch, torch.stack([expected] * 2))
    assert room[2].isnan().all() and torch.equal(room[0], expected)


def test_views_of_a_large_photograph_are_cut_from_enough_pixels(wide_clip, tmp_path):
    clip, exact = wide_clip
    photograph(0, 1000, 750).save(tmp_path / "large.png")  # a JPEG is small already
    images, seen = ImageSet.from_folder(tmp_path), []

    def own(image, rng):
        seen.append(image.size)
        return image.resize((224, 224))

    views = [(weak_view(224), 3), (strong_view(224), 4), (own, 0)]
    small = torch.cat([*clip.encode_views(images, views)], 1)
    for (transform, seed), features in zip(views, small, strict=True):
        alone = clip.encode_image(images.view(transform, seed))
        assert torch.equal(alone, features)
    assert set(seen) == {(1000, 750)}, "of another view we do not know what it needs"
    full = torch.cat([*exact.encode_views(images, views)], 1)
    assert (small * full).sum(-1).min() > 0.999
    sizes = [(700, 700), (900, 700), (733, 735), (736, 735), (3000, 1500)]
    factors = [to_spare(Image.new("RGB", size), views[0][0]) for size in sizes]
    assert factors == [1, 1, 1, 2, 4]


def test_lpclip_on_a_folder_decodes_each_photograph_once(small, decoded, tmp_path):
    clip = StoredCLIP(load_clip(device="cpu"), FeatureStore(tmp_path / "store"))
    method = LPCLIP(clip, NAMES, epochs=1)
    sound = readable(clip, small, method.encoded_views())
    assert len(decoded) == len(small)
    method.fit(sound).predict(sound)
    assert len(decoded) == len(small)
    assert len(method.encoded_views()) == 5
    assert len(LPCLIP(clip, NAMES, epochs=0).encoded_views()) == 1
