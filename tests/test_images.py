"""What other people's pictures, folders and class lists can hold: each is read, or
named in one clear sentence."""

import io
import os
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw, ImageOps
from processes import program

from clipadapt import ImageSet, ZeroShot, digits, load_clip
from clipadapt.clip.model import _middle
from clipadapt.images import pictures, sets
from clipadapt.images.pictures import printable, read_image, to_rgb
from clipadapt.images.sets import as_imageset, check_classnames, check_labels
from clipadapt.images.views import DISTORTIONS, centre_view, strong_view, weak_view

RAMP = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))
GREY = Image.fromarray(RAMP)
NFC, NFD = "caf\u00e9", "cafe\u0301"


def file_of(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def warning_of(read) -> str:
    """All warnings of a call in one text; none is an error of the test."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read()
    return "\n".join(str(warning.message) for warning in caught)


@pytest.fixture
def photos(tmp_path):
    """A folder with the classes cat and dog, two images each."""
    for name in ("cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        GREY.save(tmp_path / "photos" / name)
    return tmp_path / "photos"


# 1. Which files are opened

POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    b"%%EndComments\n0 0 9 9 rectfill\nshowpage\n%%EOF\n"
)
NOTHING_STARTED = """
import sys, warnings
started = []
starts = "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork"
def note(event, args):
    if event in starts:
        started.append((event, args))
sys.addaudithook(note)
from clipadapt.images.sets import ImageSet, read_image
from PIL import Image
started.clear()
path = "photos/cat/cat.png"
content = open(path, "rb").read()
as_row = {"bytes": content, "path": "cat.png"}
for item in (path, content, open(path, "rb"), Image.open(path), as_row):
    try:
        read_image(item)
    except ValueError as error:
        print("refused:", error)
images = ImageSet.from_folder("photos")
print(len(images), [reason for _, reason in images.skipped], started)
"""


def test_postscript_starts_no_process(photos, tmp_path, monkeypatch):
    (photos / "cat" / "cat.png").write_bytes(POSTSCRIPT)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.chdir(tmp_path)
    printed, _ = program(tmp_path, NOTHING_STARTED, PATH=path).finish()
    assert printed.count("refused:") == 5, printed
    assert printed.splitlines()[-1].startswith(
        "4 ['photos/cat/cat.png: cannot be read"
    ) and printed.endswith("[]\n")
    assert not (tmp_path / "started").exists()
    with Image.open(
        io.BytesIO(POSTSCRIPT)
    ) as image:  # the file is one that Pillow would hand to Ghostscript
        assert image.format == "EPS"


@pytest.mark.parametrize(
    "kind, mode",
    [
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("WEBP", "RGB"),
        ("AVIF", "RGB"),
        ("TIFF", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "P"),
        ("PPM", "RGB"),
        ("JPEG2000", "RGB"),
    ],
)
def test_raster_formats_are_read_whatever_the_file_is_called(tmp_path, kind, mode):
    if kind not in pictures._readable_kinds():
        pytest.skip(f"this Pillow cannot read {kind}")
    content = file_of(GREY.convert(mode), kind)
    (tmp_path / "picture.xyz").write_bytes(content)
    for item in (
        tmp_path / "picture.xyz",
        str(tmp_path / "picture.xyz"),
        content,
        io.BytesIO(content),
    ):
        read = read_image(item)
        assert (
            read.mode == "RGB"
            and np.abs(np.asarray(read, int).mean(2) - RAMP).mean() < 8
        )


def test_the_photographs_of_phones_are_read(tmp_path):
    GREY.convert("RGB").save(
        tmp_path / "phone.jpg",
        "MPO",
        save_all=True,
        append_images=[GREY.convert("RGB").rotate(180)],
    )
    with Image.open(tmp_path / "phone.jpg") as image:
        assert image.format == "MPO"
    assert read_image(tmp_path / "phone.jpg").size == (32, 24)


@pytest.mark.parametrize(
    "kind", ["ICO", "TGA", "PCX", "SGI", "PDF", "EPS", "DDS", "XBM"]
)
def test_other_formats_are_refused(tmp_path, kind):
    path = tmp_path / "picture.png"
    (GREY.convert("1") if kind == "XBM" else GREY.convert("RGB")).save(path, kind)
    with pytest.raises(
        ValueError,
        match="picture.png: cannot be read as an image .it holds none of JPEG, PNG",
    ):
        read_image(path)


def test_heic_asks_for_its_decoder_or_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(GREY.convert("RGB")).save(tmp_path / "phone.heic")
    assert read_image(tmp_path / "phone.heic").size == (32, 24)


def test_heic_without_a_decoder_says_what_to_install(photos, monkeypatch):
    monkeypatch.setattr(pictures, "_readable_kinds", lambda: ("JPEG", "PNG"))
    (photos / "cat" / "phone.heic").write_bytes(
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    )
    assert (
        "phone.heic: cannot be read as an image (HEIC needs a decoder: pip install "
        "pillow-heif)"
    ) in warning_of(lambda: ImageSet.from_folder(photos))


# 2. How large they may become


@pytest.mark.parametrize(
    "kind", ["PNG", "GIF", "BMP", "TIFF", "JPEG", "PPM", "WEBP", "JPEG2000"]
)
def test_the_limit_is_checked_before_anything_is_decoded(tmp_path, kind, monkeypatch):
    path = tmp_path / "large"
    Image.new("L", (40, 30)).save(path, kind)
    assert read_image(path, max_pixels=1200).size == (40, 30)
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded")
    )
    for item in (path, path.read_bytes()):
        with pytest.raises(
            ValueError,
            match="40 x 30 are 1,200 pixels, more than max_pixels=1,199. If you trust "
            "it, pass a higher max_pixels",
        ):
            read_image(item, max_pixels=1199)


def test_the_limit_goes_with_an_image_set(tmp_path):
    GREY.save(tmp_path / "1.png")
    low = ImageSet([tmp_path / "1.png"], max_pixels=700)
    same = lambda image, rng: image
    for images in (
        low,
        low.subset([0]),
        low.unlabelled(),
        low.view(same),
        low.view(same).subset([0]),
    ):
        with pytest.raises(ValueError, match="max_pixels=700"):
            images[0]
    with pytest.raises(
        ValueError, match="1 of 1 images cannot be read:\n.*max_pixels=700"
    ):
        ImageSet.from_folder(tmp_path, max_pixels=700)
    for wrong in (0, 1.5, None, "many"):
        with pytest.raises(
            ValueError, match="max_pixels must be a positive whole number"
        ):
            ImageSet.from_folder(tmp_path, max_pixels=wrong)


def test_a_lazily_opened_image_and_a_large_tile_keep_the_limit(tmp_path):
    GREY.save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="max_pixels=700"):
        read_image(Image.open(tmp_path / "1.png"), max_pixels=700)
    assert read_image(GREY, max_pixels=1).size == (32, 24), (
        "what is decoded already is no danger"
    )
    (tmp_path / "tile.tif").write_bytes(tiff_in_tiles(32))
    assert read_image(tmp_path / "tile.tif").size == (32, 24)
    (tmp_path / "tile.tif").write_bytes(tiff_in_tiles(20_000))
    with pytest.raises(
        ValueError, match="tile.tif: 20,000 x 20,000 are 400,000,000 pixels"
    ):
        read_image(tmp_path / "tile.tif")


def tiff_in_tiles(side: int) -> bytes:
    """A grey TIFF of 32 x 24 pixels in one compressed tile of `side` x `side`."""
    tile = zlib.compress(bytes(min(side, 32) ** 2))
    values = {
        256: 32,
        257: 24,
        258: 8,
        259: 8,
        262: 1,
        277: 1,
        322: side,
        323: side,
        324: 8 + 2 + 10 * 12 + 4,
        325: len(tile),
    }
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + bytes(4) + tile


@pytest.mark.parametrize("pixels", [None, 10])
def test_pillows_own_limit_does_not_interfere_and_stays(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    monkeypatch.setattr(pictures, "_LARGE", 100)
    for name in ("1.png", "1.tif", "1.webp"):
        GREY.save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name).size == (11, 8)  # shrunk
    assert Image.MAX_IMAGE_PIXELS == pixels


MEASURE = """
import os, resource
from PIL import Image
from clipadapt.images.sets import read_image
Image.init()  # the code of Pillow's readers is no picture
for name in ("1.png", "RGBA.png", "F.tif"):
    child = os.fork()
    if not child:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        picture = read_image(name)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        bytes_a_pixel = (after - before) * 1024 / picture.width / picture.height
        print(name, round(bytes_a_pixel, 1), picture.getpixel((7, 7)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_reading_takes_the_decoded_picture_and_the_result_and_no_more(
    tmp_path, monkeypatch
):
    side = 4000
    Image.new("1", (side, side), 1).save(tmp_path / "1.png", compress_level=1)
    Image.new("RGBA", (side, side), "white").save(
        tmp_path / "RGBA.png", compress_level=1
    )
    Image.new("F", (side, side), 1.0).save(tmp_path / "F.tif", compression="packbits")
    monkeypatch.chdir(tmp_path)
    printed, errors = program(tmp_path, MEASURE).finish()
    measured = dict(line.split(" ", 1) for line in printed.splitlines())
    assert len(measured) == 3, errors
    for name, decoded in (
        ("1.png", 1),
        ("RGBA.png", 4),
        ("F.tif", 4),
    ):  # bytes a pixel; Pillow holds RGB in four
        used, colour = measured[name].split(" ", 1)
        assert float(used) < decoded + 4 + 2.5, f"{name}: {used} bytes a pixel"
        assert colour == "(255, 255, 255)"


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss")
def test_a_bomb_is_refused_from_its_header(tmp_path):
    import resource

    Image.new("1", (13370, 13370), 1).save(tmp_path / "bomb.png", compress_level=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError,
        match="13,370 x 13,370 are 178,756,900 pixels, "
        "more than max_pixels=100,000,000",
    ):
        read_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000


def test_blocks_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (1030, 1500, 4), np.uint8), "RGBA")
    white = Image.new("RGBA", colour.size, "white")
    assert np.array_equal(
        to_rgb(colour), Image.alpha_composite(white, colour).convert("RGB")
    )
    deep = rng.integers(0, 65536, (1030, 1500), np.uint16)
    assert np.array_equal(
        np.asarray(to_rgb(Image.fromarray(deep)))[..., 0], deep // 257
    )
    numbers = rng.random((1030, 1500), np.float32)
    assert np.array_equal(
        np.asarray(to_rgb(Image.fromarray(numbers)))[..., 0], (numbers * 255).round()
    )
    numbers[-1, -1] = 200
    assert np.asarray(to_rgb(Image.fromarray(numbers)))[:-1].max() <= 1, (
        "one range for all blocks"
    )


# 3. Damaged files


@pytest.mark.parametrize(
    "error",
    [
        OSError("o"),
        SyntaxError("s"),
        RuntimeError("r"),
        NotImplementedError("n"),
        TypeError("t"),
        AttributeError("a"),
        KeyError("k"),
        IndexError("i"),
        ZeroDivisionError("z"),
        RecursionError("c"),
        subprocess.CalledProcessError(1, "gs"),
        Image.DecompressionBombError("b"),
    ],
)
def test_whatever_a_decoder_raises_is_a_damaged_image(photos, monkeypatch, error):
    whole = Image.Image.load

    def load(image):
        if getattr(image, "size", None) == (7, 7):
            raise error
        return whole(image)

    Image.new("L", (7, 7)).save(photos / "cat" / "odd.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load, raising=False)
    with pytest.raises(ValueError, match="odd.png: cannot be read as an image"):
        read_image(photos / "cat" / "odd.png")


def test_too_little_memory_is_said(photos, monkeypatch):
    def load(image):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load, raising=False)
    with pytest.raises(
        ValueError, match="1.png: there is not enough memory to decode it"
    ):
        read_image(photos / "cat" / "1.png")


def damaged_exif(orientation: int) -> bytes:
    """EXIF with an orientation and a fraction whose number does not fit: Pillow reads
    it, and fails to write it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.XResolution] = 72.0
    return exif.tobytes()


@pytest.mark.parametrize("error", [KeyError("k"), TypeError("t")])
def test_a_bad_note_does_not_lose_a_good_photograph(tmp_path, monkeypatch, error):
    def bad(image):
        raise error

    GREY.convert("RGB").save(tmp_path / "good.jpg", exif=damaged_exif(1), quality=95)
    expected = np.asarray(read_image(tmp_path / "good.jpg"))
    monkeypatch.setattr(Image.Image, "getexif", bad)
    assert np.array_equal(read_image(tmp_path / "good.jpg"), expected)


def test_an_orientation_beside_a_bad_fraction_is_still_applied(tmp_path):
    turned = GREY.transpose(Image.Transpose.ROTATE_90).convert("RGB")
    content = damaged_exif(6)
    place = content.rindex(
        (72).to_bytes(4, "little")
        if b"II*" in content[:10]
        else (72).to_bytes(4, "big")
    )
    turned.save(
        tmp_path / "lying.jpg",
        exif=content[:place] + b"\xff" * (len(content) - place),
        quality=95,
    )
    read = read_image(tmp_path / "lying.jpg")
    assert (
        read.size == (32, 24)
        and np.abs(np.asarray(read, int).mean(2) - RAMP).mean() < 4
    )
    assert np.array_equal(read, read_image(read)), "turned once"


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(30),
        b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\5\0\1\0\0\0\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_broken_exif_of_many_kinds(tmp_path, exif):
    GREY.convert("RGB").save(tmp_path / "good.jpg", exif=exif)
    assert read_image(tmp_path / "good.jpg").size == (32, 24)


def test_truncated_files_are_damaged(tmp_path):
    for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"):
        content = file_of(
            Image.fromarray(
                np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
            ),
            kind,
        )
        (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=f"half.{kind}: cannot be read"):
            read_image(tmp_path / f"half.{kind}")


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "AVIF", "BMP", "PPM", "JPEG2000"]
)
def test_mutated_files_are_read_or_named(kind):
    if kind not in pictures._readable_kinds():
        pytest.skip(f"this Pillow cannot read {kind}")
    content = file_of(
        GREY.convert("RGB"),
        kind,
        **(
            {"exif": damaged_exif(6)} if kind in ("JPEG", "PNG", "WEBP", "AVIF") else {}
        ),
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        mutated = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 8)):
            mutated[place] = rng.integers(256)
        try:
            assert read_image(bytes(mutated), max_pixels=10**6).mode == "RGB"
        except ValueError as error:
            assert "an image of" in str(error)


def test_no_data_in_a_float_file_is_black(tmp_path):
    numbers = RAMP.astype(np.float32) / 255
    numbers[0, 0], numbers[0, 1], numbers[0, 2] = np.nan, np.inf, -np.inf
    Image.fromarray(numbers).save(tmp_path / "height.tif")
    read = np.asarray(read_image(tmp_path / "height.tif"))[..., 0]
    assert read[0, :3].tolist() == [0, 0, 0] and np.array_equal(read[1:], RAMP[1:])
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "empty.tif")
    with pytest.raises(ValueError, match="empty.tif: .*none of its values is a number"):
        read_image(tmp_path / "empty.tif")


# 4. Odd items


@pytest.mark.parametrize(
    "item",
    [
        None,
        7,
        1.5,
        object(),
        {},
        {"a": 1},
        {1, 2},
        ["cat", "dog"],
        [None],
        [[1], [1, 2]],
        np.array("cat"),
        np.array(7),
        np.zeros((2, 2), complex),
        np.zeros((2, 2), "M8[s]"),
        np.array([[None]]),
        {"bytes": None, "path": None},
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(2, 2, device="meta"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_is_no_image_is_refused_with_a_hint(item):
    with pytest.raises(
        ValueError,
        match="is no image: give a path, a Pillow image, an array|without an image",
    ):
        read_image(item)
    with pytest.raises(ValueError, match="image 0: "):
        ImageSet([item])[0]


@pytest.mark.parametrize(
    "item, message",
    [
        (np.zeros((0, 5)), "has no pixels"),
        (np.zeros((4, 0, 3)), "has no pixels"),
        (torch.zeros(3, 0, 4), "has no pixels"),
        (Image.new("RGB", (0, 5)), "it has no pixels"),
        (np.zeros(5), "must be .H, W."),
        (np.zeros((3, 8, 8)), "must be .H, W."),
        (torch.zeros(8, 8, 3), "must be .H, W."),
        (np.full((2, 2), np.nan), "run from nan"),
        (np.full((2, 2), -1), "run from -1"),
        (b"no image", "an image of 8 bytes: cannot be read"),
        (b"", "an image of 0 bytes: cannot be read"),
        (io.BytesIO(b"x"), "an open file: cannot be read"),
        (io.StringIO("x"), "open as text"),
        ({"bytes": b"x", "path": "7.png"}, "7.png: cannot be read"),
        (Path("/"), "a folder or a device"),
        ("/dev/null", "a folder or a device"),
        ("a\0b", "null"),
    ],
)
def test_what_cannot_be_read_is_said(item, message):
    with pytest.raises(ValueError, match=message):
        read_image(item)


@pytest.mark.parametrize(
    "name", ["no such file.png", "a cat", "https://example.org/cat.jpg", "", "x" * 100]
)
def test_text_that_is_no_path_is_a_missing_file(name):
    with pytest.raises(
        FileNotFoundError,
        match="no such image file" + ("; download it first" if "://" in name else ""),
    ):
        read_image(name)


def test_a_very_long_text_is_no_path_either():
    with pytest.raises(ValueError, match="cannot be read") as caught:
        read_image("x" * 10**6)
    assert len(str(caught.value)) < 500


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png: .*a folder or a device"):
        read_image(tmp_path / "1.png")


HALF = np.full((4, 5, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    "item",
    [
        torch.full((3, 4, 5), 0.5, dtype=torch.bfloat16),
        torch.full((3, 4, 5), 0.5, dtype=torch.float16),
        torch.full((4, 5), 0.5),
        torch.full((1, 4, 5), 0.5, requires_grad=True),
        HALF.astype(np.float16),
        HALF.astype(np.float64),
        HALF[..., 0].tolist(),
        np.full((4, 5), 128, np.int64),
        torch.full((3, 4, 5), 128, dtype=torch.uint8),
    ],
)
def test_numbers_of_every_kind_are_read(item):
    assert np.array_equal(read_image(item), np.full((4, 5, 3), 128))


def test_undecoded_rows_are_read(tmp_path):
    GREY.save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    rows = [
        {"bytes": content, "path": "somewhere.png"},
        {"bytes": content},
        {"bytes": None, "path": str(tmp_path / "1.png")},
        {"path": tmp_path / "1.png"},
        content,
        bytearray(content),
        io.BytesIO(content),
    ]
    assert all(
        np.array_equal(image, GREY.convert("RGB")) for image, _ in ImageSet(rows)
    )
    with open(tmp_path / "1.png", "rb") as file:
        assert np.array_equal(read_image(file), read_image(file)), "twice"
    for row in (content, rows[0], None, tmp_path / "1.png", GREY):
        with pytest.raises(ValueError, match="not a set of images|must be"):
            as_imageset(row)
        with pytest.raises(ValueError, match="not a set of images|must be"):
            ImageSet(row)


def test_a_pillow_image_is_not_changed():
    lying = GREY.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[ExifTags.Base.Orientation] = 6
    before = lying.tobytes(), lying.size, lying.mode
    assert read_image(lying).size == (32, 24)
    assert (lying.tobytes(), lying.size, lying.mode) == before and lying.getexif()[
        ExifTags.Base.Orientation
    ] == 6


def test_a_damaged_row_of_the_hub_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"bytes": file_of(GREY), "path": "0.png"},
        {"bytes": POSTSCRIPT, "path": "1.png"},
        {"bytes": b"x", "path": None},
        None,
    ]
    table = datasets.Dataset.from_dict(
        {"picture": rows, "kind": [0, 1, 0, 1]},
        datasets.Features(
            picture=datasets.Image(), kind=datasets.ClassLabel(names=["cat", "dog"])
        ),
    )
    table.to_parquet(tmp_path / "pets" / "train.parquet")
    images = ImageSet.from_hub(str(tmp_path / "pets"))
    assert images.labels.tolist() == [0, 1, 0, 1] and images[0][0].size == (32, 24)
    for row, message in [
        (1, "row 1 of .*pets: 1.png: cannot be read"),
        (2, "row 2 of .*pets: an image of 1 bytes"),
        (3, "row 3 of .*pets: .*image"),
    ]:
        with pytest.raises(ValueError, match=message):
            images[row]
    with pytest.raises(ValueError, match="row 3"):
        images.subset([3])[0]


# 5. Folders


def test_linked_class_folders_are_followed_and_loops_cut(photos, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    GREY.save(tmp_path / "elsewhere" / "deep" / "5.png")
    (photos / "owl").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "cat" / "more").symlink_to(
        tmp_path / "elsewhere", target_is_directory=True
    )
    (photos / "cat" / "round").symlink_to(photos, target_is_directory=True)
    (tmp_path / "elsewhere" / "again").symlink_to(
        tmp_path / "elsewhere", target_is_directory=True
    )
    with pytest.warns(UserWarning) as caught:
        found = ImageSet.from_folder(photos)
    assert found.classnames == ["cat", "dog", "owl"] and found.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        2,
    ]
    assert (
        "3 a link to a folder that is read anyway" in str(caught[0].message)
        and len(found.ignored) == 3
    )


def test_what_is_no_image_is_counted_by_its_ending(photos):
    for name in (
        "a.txt",
        "cat/b.TXT",
        "cat/film.mp4",
        "cat/README",
        "cat/.hidden.png",
        "dog/Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "dog/big.psd",
    ):
        (photos / name).write_bytes(b"x")
    for name in ("@eaDir", "__MACOSX", ".git", "cat/@eaDir"):
        (photos / name).mkdir()
        GREY.save(photos / name / "thumbnail.png")
    GREY.save(photos / "dog" / "without an ending", "PNG")
    said = warning_of(lambda: ImageSet.from_folder(photos))
    found = ImageSet.from_folder(photos)
    assert (
        "left out, as they are no images: 8 hidden or of the system, 2 .txt, 1 " in said
        and "1 .mp4" in said
        and "1 .psd" in said
        and "1 without an ending" in said
    )
    assert (
        said.count("left out") == 1
        and len(found) == 5
        and found.labels.tolist() == [0, 0, 1, 1, 1]
    )
    assert len(found.ignored) == 13 and found.classnames == ["cat", "dog"]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        FileNotFoundError, match=r"no images in this folder \(but 1 .txt\)"
    ):
        ImageSet.from_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageSet.from_folder(tmp_path / "notes.txt")


def test_a_clean_folder_says_nothing(photos):
    assert warning_of(lambda: ImageSet.from_folder(photos)) == ""
    assert ImageSet.from_folder(photos).ignored == []


def test_an_empty_class_folder_is_said(photos):
    (photos / "owl").mkdir()
    assert "no images in the sub-folder owl" in warning_of(
        lambda: ImageSet.from_folder(photos)
    )
    assert ImageSet.from_folder(photos).classnames == ["cat", "dog"]
    assert ImageSet.from_folder(photos, ["cat", "dog", "owl"]).classnames == [
        "cat",
        "dog",
        "owl",
    ]


@pytest.mark.parametrize(
    "first, second, said",
    [
        (
            "hot_dog",
            "hot dog",
            "the sub-folders 'hot dog' and 'hot_dog' are one class, 'hot dog'",
        ),
        (NFC, NFD, r"the sub-folders 'cafe\u0301' and 'caf\xe9' are one class"),
        (
            "Cat",
            "CAT",
            "the classes 'CAT' and 'Cat' and 'cat' differ in capital letters only",
        ),
    ],
)
def test_folders_that_look_alike_are_said(photos, first, second, said):
    for folder in (first, second):
        (photos / folder).mkdir(exist_ok=True)
        GREY.save(photos / folder / "9.png")
    if len(list(photos.iterdir())) < 4:
        pytest.skip("this file system takes both names for one")
    assert said in warning_of(lambda: ImageSet.from_folder(photos))
    assert (
        len(ImageSet.from_folder(photos).classnames)
        == (5 if first == "Cat" else 3) - (first == "Cat") * 1
    )


def test_class_names_find_folders_in_either_form(photos):
    (photos / NFD).mkdir()
    GREY.save(photos / NFD / "9.png")
    for name in (NFC, NFD):
        found = ImageSet.from_folder(photos, ["dog", name, "cat"])
        assert found.classnames == ["dog", NFC, "cat"] and sorted(found.labels) == [
            0,
            0,
            1,
            2,
            2,
        ]
    with pytest.raises(ValueError, match="'hot dog' and 'hot_dog' mean one sub-folder"):
        ImageSet.from_folder(photos, ["hot dog", "hot_dog", "cat", "dog", NFC])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_utf8_are_read_and_counted(photos):
    folder = os.fsencode(photos) + b"/caf\xe9"
    os.mkdir(folder)
    GREY.save(photos / "9.png")
    os.rename(os.fsencode(photos / "9.png"), folder + b"/sm\xf8rrebr\xf8d.png")
    with open(folder + b"/\xff.png", "wb") as file:
        file.write(b"x")
    with open(folder + b"/\xfe.t\xfet", "wb") as file:
        file.write(b"x")
    said = warning_of(lambda: ImageSet.from_folder(photos))
    said.encode()
    found = ImageSet.from_folder(photos)
    assert "\\xff.png: cannot be read" in said and ".t\\xfet" in said
    assert (
        found.classnames == ["caf\\xe9", "cat", "dog"]
        and len(found) == 5
        and read_image(found.images[0]).size == (32, 24)
    )


def test_a_folder_name_cannot_write_to_the_terminal(photos):
    (photos / "owl\x1b[31m").mkdir()
    GREY.save(photos / "owl\x1b[31m" / "\x07.png")
    (photos / "owl\x1b[31m" / "\x1b[2J.jpg").write_bytes(b"x")
    said = warning_of(lambda: ImageSet.from_folder(photos))
    assert (
        ImageSet.from_folder(photos).classnames[-1] == "owl\\x1b[31m"
        and "\x1b" not in said
        and "\\x1b[2J.jpg" in said
    )


def test_broken_links_and_pipes_are_named(photos):
    (photos / "cat" / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "cat" / "self.png").symlink_to(photos / "cat" / "self.png")
    os.mkfifo(photos / "cat" / "pipe.png")
    said = warning_of(lambda: ImageSet.from_folder(photos))
    assert (
        "3 of 7 images skipped" in said
        and "gone.png: no such image file" in said
        and "pipe.png: " in said
    )


def test_a_closed_folder_is_named(photos, monkeypatch):
    opened = os.scandir

    def scandir(path="."):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    said = warning_of(lambda: ImageSet.from_folder(photos))
    assert (
        "dog: cannot be opened (Permission denied)" in said
        and "dog" in ImageSet.from_folder(photos).skipped[0][0]
    )
    with pytest.raises(ValueError, match="dog: cannot be opened"):
        ImageSet.from_folder(photos, on_error="raise")


# 6. Class names and labels


@pytest.mark.parametrize(
    "names, message",
    [
        ({0: "zero"}, r"not a dict; pass list\(names.values\(\)\)"),
        ({"cat", "dog"}, r"sorted\(names\)"),
        (frozenset("ab"), r"sorted\(names\)"),
        (b"cat", "a list of text, not b'cat'"),
        (7, "not 7"),
        (None, "not None"),
        (["cat", None], "class 1 must be text, not None"),
        ([float("nan")], "class 0 must be text, not nan"),
        ([b"cat"], "class 0 must be text, not b'cat'"),
        (["cat", 1], "class 1 must be text, not 1"),
        (range(2), "must be text, not 0"),
        (["cat", True], "not True"),
        ([["cat"]], r"not \['cat'\]"),
        (["a\x1b[31mb"], r"class 0 holds characters that cannot be seen: a\\x1b"),
        (["a\0"], "cannot be seen"),
        (["a\x7f"], "cannot be seen"),
        (["a\u202eb"], r"\\u202e"),
        (["cat", "cat\u200b"], r"class 1 .*\\u200b"),
        (["a\udce9"], r"a\\xe9"),
        ([NFC, NFD], "repeated: " + NFC),
        (["a", "a ", " a"], "repeated: a"),
        (["", "a"], "class 0 has an empty name"),
    ],
)
def test_odd_class_names_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        check_classnames(names)


def test_ordinary_class_names_stay():
    names = [
        "hot dog",
        "$5 to $10",
        "日本 語",
        "naïve",
        "👩‍🚀",
        "ש",
        "می‌خواهم",
        "Cat",
        "cat",
        "a" * 1500,
    ]
    assert check_classnames(names) == [
        unicodedata.normalize("NFC", name) for name in names
    ]
    assert (
        check_classnames(np.array(["cat", "dog"])) == ["cat", "dog"]
        and type(check_classnames(np.array(["cat"]))[0]) is str
    )
    assert (
        check_classnames({0: "cat", 1: "dog"}.values()) == ["cat", "dog"]
        and check_classnames(map(str, range(2))) == ["0", "1"]
        and check_classnames(()) == []
    )


@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("a.txt", "cat\n\n dog \nhot  dog", ["cat", "dog", "hot dog"]),
        ("a.txt", "cat,dog,rabbit", ["cat", "dog", "rabbit"]),
        ("a.txt", "cat, dog, rabbit\n", ["cat", "dog", "rabbit"]),
        ("a.csv", "cat,dog", ["cat", "dog"]),
        (
            "a.txt",
            "tench, Tinca tinca\ngoldfish, Carassius auratus",
            ["tench, Tinca tinca", "goldfish, Carassius auratus"],
        ),
        ("a.csv", 'id,name\n0,cat\n1,"dog, wild"', ["cat", "dog, wild"]),
        ("a.csv", "name\ncat\ndog", ["cat", "dog"]),
        ("a.csv", "cat\ndog", ["cat", "dog"]),
        ("a.csv", '"dog, wild"\ncat', ["dog, wild", "cat"]),
        ("a.tsv", "id\tClass\n0\tcat\n1\tdog", ["cat", "dog"]),
        ("a.csv", "id;classname\n0;cat", ["cat"]),
        ("a.txt", "id,name\n0,cat", ["cat"]),
        ("a.csv", "class,label\n0,cat\n1,dog", ["cat", "dog"]),
        ("a.csv", "label,name\n0,cat", ["cat"]),
        ("a.txt", "", []),
        ("a.txt", "one", ["one"]),
        ("a.txt", "cat\r\ndog\r", ["cat", "dog"]),
    ],
)
def test_class_lists_in_files(tmp_path, file, content, expected):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / file).write_bytes(content.encode(encoding))
        assert check_classnames(tmp_path / file) == expected


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.csv", "0,cat\n1,dog", "several columns"),
        ("a.txt", "0,cat\n1,dog", "several columns"),
        ("a.tsv", "0\tcat\n1\tdog", "several columns"),
        ("a.txt", "0\tcat\n1\tdog", "several columns"),
        ("a.csv", "id,word\n0,cat", "several columns"),
        ("a.csv", "id,class\n0,1\n1,2", "only numbers"),
        ("a.csv", "id,name\n0,cat\n1,", "class 1 has an empty name"),
        ("a.csv", "id,name\n0,cat\n1", "class 1 has an empty name"),
        ("a.txt", '["cat", "dog"]', "JSON"),
        ("a.txt", '{"0": "cat"}', "JSON"),
        ("a.txt", "cat\ncat", "repeated: cat"),
        ("a.txt", "cat\0dog", "cannot be seen"),
    ],
)
def test_class_lists_that_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        check_classnames(tmp_path / file)


def test_a_class_list_with_a_cell_that_does_not_end_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text('cat\n"' + "dog," * 40_000)
    with pytest.raises(ValueError, match="cannot be read .*field limit"):
        check_classnames(tmp_path / "a.txt")


def test_class_lists_that_are_no_text(tmp_path):
    GREY.save(tmp_path / "a.txt", "PNG")
    for content in (None, "cat".encode("utf-16-le") + b"\xff", b"\xff\xfe\0"):
        if content:
            (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(ValueError, match="not UTF-8|cannot be seen"):
            check_classnames(tmp_path / "a.txt")
    for path in (tmp_path, "no\0thing", tmp_path / "none.txt"):
        with pytest.raises(FileNotFoundError, match="no class list"):
            check_classnames(path)


def test_many_class_names_are_checked_once(monkeypatch):
    names = [f"class number {i}" for i in range(21_841)]
    images = ImageSet([GREY] * 30, names, [0] * 30)

    checked: list[str] = []
    monkeypatch.setattr(
        sets, "check_classnames", lambda names: checked.extend(names) or [*names]
    )
    some = images.subset([1, 2])
    assert some.classnames == names and some.classnames is not images.classnames
    assert not checked


@pytest.mark.parametrize(
    "labels, message",
    [
        (["cat", "dog"], "integers, these are <U3, for example 'cat'"),
        ([0, float("nan")], "float64"),
        ([0.0, 1.0], "float64"),
        ([True, False], "bool"),
        ([10**30, 0], "object, for example|lie in"),
        ([2**63, 0], "integers|lie in"),
        (np.array([2**63, 0], np.uint64), "lie in"),
        ([[0, 1]], "shape"),
        ([[0], [1, 0]], "one integer an image|shape"),
        ([0, None], "object, for example None"),
        (7, "shape"),
        ({0: 1}, "shape"),
        ("ab", "shape"),
        (torch.tensor([0.5, 1]), "float32"),
        (torch.zeros(2, dtype=torch.bfloat16), "one integer"),
        ([0, 2], r"found \[2\]"),
        ([-2, 0], r"found \[-2\]"),
    ],
)
def test_odd_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 2, 2)


def test_ordinary_labels_stay():
    for labels in ([0, -1], (0, -1), np.array([0, -1], np.int8), torch.tensor([0, -1])):
        assert (
            check_labels(labels, 2, 2).tolist() == [0, -1]
            and check_labels(labels, 2, 2).dtype == np.int64
        )
    assert check_labels([], 0, 2).shape == (0,)


def test_printable_spells_out_what_cannot_be_seen():
    assert (
        printable("日本 naïve a b") == "日本 naïve a b"
        and printable(b"caf\xe9") == "caf\\xe9"
        and printable(Path("a\nb")) == "a\\nb"
        and printable("\x1b[0m\u202e") == "\\x1b[0m\\u202e"
    )


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (999_999, 2)])
def test_a_line_does_not_fill_the_memory(size):
    """Its short side would be enlarged to 32 pixels, and the long one with it, before
    the middle is cropped."""
    resource = pytest.importorskip("resource")
    clip, before = (
        load_clip(device="cpu"),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
    assert clip.encode_image([Image.new("RGB", size)]).shape == (1, 64)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, (
        "kilobytes"
    )


@pytest.mark.parametrize("size", [(201, 3), (3, 200), (130, 2), (67, 1)])
def test_the_middle_of_a_long_image_is_what_the_whole_gives(size):
    noise = np.random.default_rng(0).integers(
        0, 256, (size[1], size[0], 3), dtype=np.uint8
    )
    image, prepare = Image.fromarray(noise), load_clip(device="cpu").preprocess
    middle = _middle(image, prepare)
    assert max(middle.size) < max(size)
    assert (prepare(middle) - prepare(image)).abs().mean() < 0.15, (
        "more than half a pixel of noise, with a deviation of 0.9"
    )


@pytest.mark.parametrize("kind", [2, 5, 7, 12])
def test_a_tiff_whose_tiles_have_no_size_is_named(tmp_path, kind):
    """The tags 322 and 323 as text, fractions, bytes and floats."""
    whole = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 277: 1, 324: 200, 325: 64}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in whole.items()]
    entries[6:6] = [struct.pack("<HHI4s", tag, kind, 4, b"AAAA") for tag in (322, 323)]
    (tmp_path / "tiles.tif").write_bytes(
        b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(200)
    )
    with pytest.raises(ValueError, match="tiles.tif: "):
        read_image(tmp_path / "tiles.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_without_an_ending_is_left_out(photos):
    """Who opens it waits for somebody to write to it."""
    os.mkfifo(photos / "cat" / "pipe")
    assert "without an ending" in warning_of(lambda: ImageSet.from_folder(photos))


def test_what_is_no_image_is_shown_briefly():
    odd = np.full((20, 20), 1 + 2j)
    with pytest.raises(ValueError, match="is no image") as caught:
        read_image(odd)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "JPEG", "turned"]
)
def test_a_large_picture_is_shrunk_before_anything_else(mode, tmp_path, monkeypatch):
    """By a whole factor, to fewer pixels than the bound, and to the same picture."""
    monkeypatch.setattr("clipadapt.images.pictures._LARGE", 10_000)
    ramp = np.linspace(0, 255, 300)[None].repeat(210, 0).astype(np.uint8)
    grey, path = Image.fromarray(ramp), tmp_path / "large.tif"
    if mode == "I;16":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(path)
    elif mode == "F":
        Image.fromarray(ramp.astype(np.float32) / 255).save(path)
    elif mode in ("JPEG", "turned"):
        path, exif = tmp_path / "large.jpg", Image.Exif()
        exif[0x0112] = 3 if mode == "turned" else 1
        grey.convert("RGB").save(path, quality=95, exif=exif)
    else:
        grey.convert(mode).save(path)
    small = read_image(path)
    assert (
        small.size == (100, 70)
        if mode not in ("JPEG", "turned")
        else small.width * small.height <= 10_000
    )
    expected = np.asarray(grey.resize(small.size, Image.Resampling.BOX), int)
    expected = expected[::-1, ::-1] if mode == "turned" else expected
    difference = np.asarray(small, int) - expected[:, :, None]
    assert abs(difference.mean() if mode == "1" else np.abs(difference).max()) < 8
    monkeypatch.undo()
    assert read_image(path).size == (300, 210)


# 7. Views


def view_of_squares(image, rng, size, flip):
    """A weak view as it was drawn before images of other shapes were thought of."""
    area, ratio = rng.uniform(0.75, 1), rng.uniform(0.9, 1.1)
    width = image.width * min(1, (area * ratio) ** 0.5)
    height = image.height * min(1, (area / ratio) ** 0.5)
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(image) if flip and rng.random() < 0.5 else image


@pytest.mark.parametrize("side", [1, 8, 29, 32, 224, 301])
@pytest.mark.parametrize("flip", [True, False])
def test_views_of_squares_are_what_they_were(side, flip):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
    for size in (32, 50):
        for seed in range(20):
            expected = view_of_squares(image, np.random.default_rng(seed), size, flip)
            for squash in (False, True):
                view = weak_view(size, flip, squash)
                assert np.array_equal(
                    view(image, np.random.default_rng(seed)), expected
                )


@pytest.mark.parametrize("flip", [True, False])
def test_strong_views_of_squares_are_what_they_were(flip):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        expected = view_of_squares(image, rng, 32, flip)
        for name in rng.choice(list(DISTORTIONS), 2):
            expected = DISTORTIONS[name](expected, 9 / 30 * rng.choice([-1, 1]))
        side = round(32 * rng.uniform(0, 0.5))
        left, top = rng.integers(0, 32 - side + 1, 2).tolist()
        expected.paste((127, 127, 127), (left, top, left + side, top + side))
        seen = strong_view(32, flip)(image, np.random.default_rng(seed))
        assert np.array_equal(seen, expected)


SHAPES = [(400, 300), (450, 300), (300, 900), (900, 300), (299, 301), (640, 427)]


def page_with_a_disc(shape):
    """A black image with a white disc in its middle, half as wide as the shorter
    side."""
    page, reach = Image.new("RGB", shape), min(shape) / 4
    across, down = shape[0] / 2, shape[1] / 2
    box = (across - reach, down - reach, across + reach, down + reach)
    ImageDraw.Draw(page).ellipse(box, fill="white")
    return page


def disc(view):
    """Width and height of what is white in a view, in its pixels."""
    white = np.asarray(view)[..., 0] > 127
    return white.any(0).sum(), white.any(1).sum()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strong", [False, True])
def test_a_circle_stays_a_circle(shape, strong):
    page, aspects = page_with_a_disc(shape), []
    plain = {"operations": 0, "cutout": 0}
    view = strong_view(300, **plain) if strong else weak_view(300)
    for seed in range(40):
        width, height = disc(view(page, np.random.default_rng(seed)))
        covered = 150 / width * 150 / height
        assert 0.73 < covered < 1.02, "75 to 100 % of the square in the middle"
        aspects.append(width / height)
    assert 1 / 1.1 - 0.02 < min(aspects) and max(aspects) < 1 / 0.9 + 0.02
    assert abs(np.mean(aspects) - 1) < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_squashed_views_are_narrower_by_the_shape_of_the_image(shape):
    page, view = page_with_a_disc(shape), weak_view(300, squash=True)
    sizes = [disc(view(page, np.random.default_rng(seed))) for seed in range(40)]
    aspects = np.array([width / height for width, height in sizes])
    relative = aspects * shape[0] / shape[1]
    assert 0.87 < relative.min() and relative.max() < 1.13
    assert abs(relative.mean() - 1) < 0.05


@pytest.mark.parametrize("shape", [*SHAPES, (30, 29), (17, 500), (224, 224), (1, 3)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_the_centre_view_is_what_open_clip_reads(shape, mode):
    colours = np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), np.uint8)
    image = Image.fromarray(colours)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    preprocess = open_clip.image_transform(224, False, resize_mode=mode, **plain)
    expected = 255 * preprocess(image).permute(1, 2, 0).numpy()
    seen = np.asarray(centre_view(224, squash=mode == "squash")(image, None), float)
    assert np.abs(seen - expected).mean() < 0.5
    twice = preprocess(Image.fromarray(seen.astype(np.uint8)))
    assert np.abs(255 * twice.permute(1, 2, 0).numpy() - seen).max() < 1e-3, (
        "left alone"
    )


def test_a_weak_view_with_nothing_cut_off_is_the_centre_view():
    class Whole:
        """A generator that always draws the whole area in its own proportions."""

        def uniform(self, low, high):
            return 1.0 if low > 0 else 0.0  # of area and proportions, of the rest

    colours = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    image = Image.fromarray(colours)
    for squash in (False, True):
        seen = weak_view(64, False, squash)(image, Whole())
        assert np.array_equal(seen, centre_view(64, squash)(image, None))


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (999_999, 2)])
def test_views_of_a_line_take_no_memory(size):
    line = Image.new("RGB", size, "white")
    for view in (weak_view(224), strong_view(224), centre_view(224)):
        assert view(line, np.random.default_rng(0)).size == (224, 224)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (96, 32)])
def test_weak_views_of_long_images_cost_no_more_than_those_of_squares(clip, shape):
    """Handwriting in the middle of a longer page, which CLIP reads as well as the
    square."""
    images = digits("train").subset(range(400))
    pages = []
    for image, _ in images:
        page = Image.new("RGB", shape)
        page.paste(image, ((shape[0] - 32) // 2, (shape[1] - 32) // 2))
        pages.append(page)
    pages = ImageSet(pages, images.classnames, images.labels)
    method = ZeroShot(clip, images.classnames).fit(images)
    on_squares = method.score(images.view(weak_view(32, flip=False)))
    on_pages = method.score(pages.view(weak_view(32, flip=False)))
    assert on_pages > on_squares - 0.01
    distorted = method.score(pages.view(weak_view(32, flip=False, squash=True)))
    assert shape == (32, 48) or distorted < on_squares - 0.03, "the test can tell"
