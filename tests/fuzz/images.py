"""The target `images`: whole and damaged files, and things that are no files."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from clipadapt.images.pictures import read_image

from .mutate import mutate_bytes, odd_value
from .runner import Target, Wrong

HEAD = 300  # bytes in which most formats keep sizes, modes and offsets


ENDINGS = ["png", "jpg", "tif", "webp", "gif", "bmp", "avif", "eps", "ppm", "JPG"]


def _picture(mode: str, size: tuple[int, int] = (24, 20)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(values, "RGBA").convert("RGB").convert(mode)


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    frames = [frame.copy() for frame in options.pop("append_images", [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.copy().save(buffer, kind, append_images=frames, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    """Orientation, a rational, and a block of GPS."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x010F] = 6, (72, 1), "a camera"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return exif.tobytes()


def _interlaced_png() -> bytes:
    """An Adam7 image of 8x8 grey pixels, which Pillow reads and does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return (
            struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
        )

    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(
        b"\0" + row.tobytes()
        for y, x, down, right in passes
        for row in grey[y::down, x::right]
    )
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def make_seeds() -> dict[str, bytes]:
    """Whole files of all kinds of photographs, and of kinds that must be refused."""
    rgb, frames = (
        _picture("RGB"),
        [
            _picture("RGB", (24, 20)),
            _picture("L").convert("RGB"),
        ],
    )
    grey16 = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100)
    grey32 = Image.fromarray(np.arange(480, dtype=np.int32).reshape(20, 24))
    floats = Image.fromarray(np.linspace(0, 1, 480, dtype=np.float32).reshape(20, 24))
    animated = {"save_all": True, "append_images": frames}
    made = {
        "jpeg": _saved(rgb, "JPEG", exif=_exif()),
        "progressive jpeg": _saved(rgb, "JPEG", progressive=True),
        "grey jpeg": _saved(_picture("L"), "JPEG"),
        "cmyk jpeg": _saved(_picture("CMYK"), "JPEG"),
        "mpo": _saved(rgb, "MPO", **animated),
        "png": _saved(rgb, "PNG", exif=_exif()),
        "rgba png": _saved(_picture("RGBA"), "PNG"),
        "palette png": _saved(_picture("P"), "PNG", transparency=3),
        "16-bit png": _saved(grey16, "PNG"),
        "1-bit png": _saved(_picture("1"), "PNG"),
        "interlaced png": _interlaced_png(),
        "animated png": _saved(rgb, "PNG", **animated),
        "gif": _saved(_picture("P"), "GIF"),
        "animated gif": _saved(rgb, "GIF", **animated),
        "bmp": _saved(rgb, "BMP"),
        "palette bmp": _saved(_picture("P"), "BMP"),
        "ppm": _saved(rgb, "PPM"),
        "pgm": _saved(_picture("L"), "PPM"),
        "pbm": _saved(_picture("1"), "PPM"),
        "plain ppm": b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n",
        "pfm": _saved(floats, "PPM"),
        "tiff": _saved(rgb, "TIFF", exif=_exif()),
        "lzw tiff": _saved(rgb, "TIFF", compression="tiff_lzw"),
        "deflated tiff": _saved(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "16-bit tiff": _saved(grey16, "TIFF"),
        "32-bit tiff": _saved(grey32, "TIFF"),
        "float tiff": _saved(floats, "TIFF"),
        "cmyk tiff": _saved(_picture("CMYK"), "TIFF"),
        "two-page tiff": _saved(rgb, "TIFF", **animated),
    }
    modern = {
        "webp": ("WEBP", {"exif": _exif()}),
        "animated webp": ("WEBP", animated),
        "lossless webp": ("WEBP", {"lossless": True}),
        "avif": ("AVIF", {"exif": _exif()}),
        "jpeg 2000": ("JPEG2000", {}),
    }
    for name, (kind, options) in modern.items():
        if features.check(
            {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}[kind]
        ):
            made[name] = _saved(rgb, kind, **options)
    for kind in (
        "EPS",
        "ICO",
        "ICNS",
        "DDS",
        "TGA",
        "PCX",
        "SGI",
        "SPIDER",
        "IM",
        "MSP",
        "PDF",
        "QOI",
        "BLP",
        "XBM",
    ):
        mode = {"SPIDER": "F", "MSP": "1", "XBM": "1", "BLP": "P"}.get(kind, "RGB")
        if kind in Image.SAVE:  # older Pillow reads QOI, but does not write it
            made[f"foreign {kind}"] = _saved(_picture(mode, (32, 32)), kind)
    return made


class Images(Target):
    """Damaged image files under every ending, and odd things in the place of a path."""

    name = "images"

    def prepare(self, folder: Path) -> None:
        self.seeds = make_seeds()
        self.contents = list(self.seeds.values())

    def attempt(self, dice: random.Random, folder: Path) -> None:
        if dice.random() < 0.1:
            image = read_image(odd_item(dice))
        else:
            content = dice.choice(self.contents)
            if dice.random() < 0.95:
                content = mutate_bytes(dice, content, dice.choice(self.contents), HEAD)
            path = folder / f"image.{dice.choice(ENDINGS)}"
            path.write_bytes(content)
            image = self.read(path)
        if (
            not isinstance(image, Image.Image)
            or image.mode != "RGB"
            or not min(image.size)
        ):
            raise Wrong(f"{image!r} is no RGB image")
        image.load()

    def read(self, path: Path) -> Image.Image:
        """Read a file; an error that does not name it is one that escaped."""
        try:
            return read_image(path)
        except (ValueError, FileNotFoundError) as error:
            if path.name not in str(error):
                raise Wrong(
                    f"a message that does not name the file: {error}"
                ) from error
            raise


def odd_item(dice: random.Random):
    """Something that somebody may take for an image."""
    shape = tuple(
        dice.choice([0, 1, 2, 3, 4, 5])
        for _ in range(dice.choice([0, 1, 2, 2, 3, 3, 4]))
    )
    values = np.array(
        [
            dice.choice(
                [0, 1, 0.5, -1, 255, 256, 65535, 1e30, float("nan"), float("inf")]
            )
            for _ in range(max(1, int(np.prod(shape))))
        ]
    )
    with np.errstate(all="ignore"):
        array = values[: int(np.prod(shape))].reshape(shape)
        array = array.astype(
            dice.choice(
                [
                    "uint8",
                    "uint16",
                    "int32",
                    "int64",
                    "float16",
                    "float32",
                    "float64",
                    "bool",
                    "complex64",
                    "object",
                    "U5",
                ]
            )
        )
    kind = dice.randrange(6)
    if kind == 0:
        return odd_value(dice)
    if kind == 1:
        return dice.choice(
            [
                None,
                b"",
                b"\x89PNG",
                io.BytesIO(b"x"),
                bytearray(3),
                {},
                set(),
                object(),
                Image,
                print,
                range(3),
                "",
                ".",
                "\0",
                "no.png",
                Path("no"),
            ]
        )
    if kind == 2:
        mode = dice.choice(
            [
                "1",
                "L",
                "P",
                "RGBA",
                "LA",
                "CMYK",
                "YCbCr",
                "LAB",
                "HSV",
                "I",
                "F",
                "I;16",
                "La",
                "RGBa",
                "RGBX",
                "PA",
            ]
        )
        return Image.new(mode, (dice.choice([0, 1, 3]), dice.choice([0, 1, 3])))
    if kind == 3 and array.dtype.kind in "bif":
        tensor = torch.from_numpy(array.copy())
        return tensor.to(
            dice.choice(
                [
                    torch.bfloat16,
                    torch.float16,
                    torch.uint8,
                    torch.float32,
                    torch.float64,
                    torch.bool,
                    torch.int64,
                ]
            )
        )
    if kind == 4:
        return Image.new(
            "F", (3, 2), dice.choice([float("nan"), float("inf"), -1.0, 0.5, 1e30])
        )
    return array if dice.random() < 0.8 else array.tolist()
