"""Tiny copies of sixteen public data sets, in the folders and file formats that
torchvision reads.

Every image has one grey value of its own, in all its pixels, so that a loaded image can
be traced to the written one.
"""

import csv
import json
import pickle
import struct
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

GREY_STEP = 8
PARTS = (
    ["train"] * 5 + ["val"] * 2 + ["test"] * 3
)  # of every class; a set without validation images has seven for training


class Written(NamedTuple):
    grey: int
    key: str | int | tuple  # what stands for the class on disk
    classname: str
    part: str


def write(name: str, root: Path) -> list[Written]:
    """Write data set `name` under `root`: ten images of each class in `LAYOUTS`."""
    writer, classes = LAYOUTS[name]
    images = draw(classes)
    writer(root, images)
    return images


def draw(classes: dict) -> list[Written]:
    return [
        Written(GREY_STEP * number, key, classname, part)
        for number, ((key, classname), part) in enumerate(
            product(classes.items(), PARTS)
        )
    ]


def by_split(images):
    return {
        split: [
            image for image in images if (image.part == "test") == (split == "test")
        ]
        for split in ("train", "test")
    }


def by_part(images):
    return {
        part: [image for image in images if image.part == part]
        for part in ("train", "val", "test")
    }


def keys(images):
    return list(dict.fromkeys(image.key for image in images))


def new_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_text(path: Path, lines):
    new_file(path).write_text("".join(f"{line}\n" for line in lines))


def write_image(path: Path, image: Written, mode: str = "RGB"):
    Image.new("L", (32, 32), image.grey).convert(mode).save(new_file(path), quality=95)


def write_cifar(
    folder, training_files, test_file, names_file, names_key, labels_key, root, images
):
    splits, names = by_split(images), keys(images)
    batches = {
        file: splits["train"][i :: len(training_files)]
        for i, file in enumerate(training_files)
    } | {test_file: splits["test"]}
    contents = {
        file: {
            "data": np.array([[image.grey] * 3072 for image in batch], np.uint8),
            labels_key: [names.index(image.key) for image in batch],
        }
        for file, batch in batches.items()
    }
    for file, content in (contents | {names_file: {names_key: names}}).items():
        new_file(root / folder / file).write_bytes(pickle.dumps(content))


def write_svhn(root, images):
    for split, part in by_split(images).items():
        pixels = np.broadcast_to(
            np.array([image.grey for image in part], np.uint8), (32, 32, 3, len(part))
        )
        savemat(
            root / f"{split}_32x32.mat",
            {"X": pixels, "y": np.array([[image.key] for image in part], np.uint8)},
        )


def write_mnist(name, root, images):
    for prefix, part in zip(("train", "t10k"), by_split(images).values()):
        pixels, labels = (
            b"".join(bytes([image.grey]) * 784 for image in part),
            bytes(image.key for image in part),
        )
        file = new_file(root / name / "raw" / prefix)
        Path(f"{file}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, len(part), 28, 28) + pixels
        )
        Path(f"{file}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, len(part)) + labels
        )


def write_eurosat(root, images):
    for image in images:
        write_image(
            root / f"eurosat/2750/{image.key}/{image.key}_{image.grey}.jpg", image
        )


def write_dtd(root, images):
    for part, members in by_part(images).items():
        paths = [f"{image.key}/{image.key}_{image.grey:04d}.jpg" for image in members]
        write_text(root / f"dtd/dtd/labels/{part}1.txt", paths)
        for path, image in zip(paths, members):
            write_image(root / "dtd/dtd/images" / path, image)


def write_flowers102(root, images):
    folder = root / "flowers-102"
    for number, image in enumerate(images, 1):
        write_image(folder / f"jpg/image_{number:05d}.jpg", image)
    numbers = {
        part: [images.index(image) + 1 for image in members]
        for part, members in by_part(images).items()
    }
    savemat(folder / "imagelabels.mat", {"labels": [[image.key for image in images]]})
    savemat(
        folder / "setid.mat",
        {
            "trnid": [numbers["train"]],
            "valid": [numbers["val"]],
            "tstid": [numbers["test"]],
        },
    )


def write_fgvc_aircraft(root, images):
    folder = root / "fgvc-aircraft-2013b/data"
    write_text(folder / "variants.txt", keys(images))
    for part, members in (
        by_part(images) | {"trainval": by_split(images)["train"]}
    ).items():
        write_text(
            folder / f"images_variant_{part}.txt",
            [f"{image.grey:07d} {image.key}" for image in members],
        )
    for image in images:
        write_image(folder / f"images/{image.grey:07d}.jpg", image)


def write_oxford_pet(root, images):
    for list_name, members in zip(("trainval", "test"), by_split(images).values()):
        identities = [
            (f"{breed}_{image.grey}", number)
            for image in members
            for breed, number in [image.key]
        ]
        write_text(
            root / f"oxford-iiit-pet/annotations/{list_name}.txt",
            [f"{identity} {number} 1 1" for identity, number in identities],
        )
        for (identity, _), image in zip(identities, members):
            write_image(root / f"oxford-iiit-pet/images/{identity}.jpg", image)


def write_food101(root, images):
    for image in images:
        write_image(root / f"food-101/images/{image.key}/{image.grey}.jpg", image)
    for split, members in by_split(images).items():
        paths = {
            key: [f"{key}/{image.grey}" for image in members if image.key == key]
            for key in keys(images)
        }
        new_file(root / f"food-101/meta/{split}.json").write_text(json.dumps(paths))


def write_gtsrb(root, images):
    splits = by_split(images)
    for image in splits["train"]:
        write_image(
            root / f"gtsrb/GTSRB/Training/{image.key:05d}/{image.grey:05d}_00000.ppm",
            image,
        )
    for image in splits["test"]:
        write_image(root / f"gtsrb/GTSRB/Final_Test/Images/{image.grey:05d}.ppm", image)
    write_text(
        root / "gtsrb/GT-final_test.csv",
        ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        + [
            f"{image.grey:05d}.ppm;32;32;1;1;30;30;{image.key}"
            for image in splits["test"]
        ],
    )


def write_fer2013(
    root,
    images,
    files=(("fer2013.csv", ("emotion", "pixels", "Usage"), ("train", "test")),),
):
    """The one file with every label; or `files`, each with its columns and the splits
    that it holds."""
    for file, columns, splits in files:
        with open(new_file(root / "fer2013" / file), "w", newline="") as stream:
            table = csv.DictWriter(stream, columns, extrasaction="ignore")
            table.writeheader()
            for split in splits:
                usages = (
                    ["Training"] if split == "train" else ["PublicTest", "PrivateTest"]
                )
                table.writerows(
                    {
                        "emotion": image.key,
                        "pixels": " ".join([str(image.grey)] * 2304),
                        "Usage": usages[i % len(usages)],
                    }
                    for i, image in enumerate(by_split(images)[split])
                )


write_fer2013_without_test_labels = partial(
    write_fer2013,
    files=(
        ("train.csv", ("emotion", "pixels"), ["train"]),
        ("test.csv", ("pixels",), ["test"]),
    ),
)


def write_stanford_cars(root, images):
    folder, names = root / "stanford_cars", keys(images)
    savemat(
        new_file(folder / "devkit/cars_meta.mat"),
        {"class_names": np.array([names], object)},
    )
    annotations = {
        "train": "devkit/cars_train_annos.mat",
        "test": "cars_test_annos_withlabels.mat",
    }
    for split, members in by_split(images).items():
        rows = [
            (1, 1, 30, 30, names.index(image.key) + 1, f"{image.grey:05d}.jpg")
            for image in members
        ]
        columns = [
            (column, object)
            for column in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
        ]
        savemat(folder / annotations[split], {"annotations": np.array([rows], columns)})
        for image in members:
            write_image(folder / f"cars_{split}/{image.grey:05d}.jpg", image)


def write_sun397(root, images):
    write_text(root / "SUN397/ClassName.txt", [f"/{key}" for key in keys(images)])
    for image in images:
        write_image(root / f"SUN397/{image.key}/sun_{image.grey:03d}.jpg", image)


def write_caltech101(root, images):
    folder = root / "caltech101/101_ObjectCategories"
    (folder / "BACKGROUND_Google").mkdir(parents=True)
    for key in keys(images):
        for number, image in enumerate(
            (image for image in images if image.key == key), 1
        ):
            write_image(
                folder / f"{key}/image_{number:04d}.jpg",
                image,
                "L" if number == 1 else "RGB",
            )


# the writer, and the classes it writes: what stands for them on disk, and their names
# in `datasets.json`
LAYOUTS = {
    "CIFAR10": (
        partial(
            write_cifar,
            "cifar-10-batches-py",
            [f"data_batch_{i}" for i in range(1, 6)],
            "test_batch",
            "batches.meta",
            "label_names",
            "labels",
        ),
        {"truck": "truck", "frog": "frog", "airplane": "airplane"},
    ),
    "CIFAR100": (
        partial(
            write_cifar,
            "cifar-100-python",
            ["train"],
            "test",
            "meta",
            "fine_label_names",
            "fine_labels",
        ),
        {"worm": "worm", "lawn_mower": "lawn mower", "apple": "apple"},
    ),
    "SVHN": (write_svhn, {1: "one", 9: "nine", 10: "zero"}),
    "FashionMNIST": (
        partial(write_mnist, "FashionMNIST"),
        {0: "t-shirt or top", 6: "shirt", 9: "ankle boot"},
    ),
    "MNIST": (partial(write_mnist, "MNIST"), {0: "0", 3: "3", 9: "9"}),
    "EuroSAT": (
        write_eurosat,
        {"AnnualCrop": "annual crop land", "River": "river", "SeaLake": "lake or sea"},
    ),
    "DTD": (
        write_dtd,
        {"banded": "banded", "polka-dotted": "polka-dotted", "zigzagged": "zigzagged"},
    ),
    "Flowers102": (
        write_flowers102,
        {1: "pink primrose", 60: "pink and yellow dahlia", 93: "air plant"},
    ),
    "FGVCAircraft": (
        write_fgvc_aircraft,
        {"707-320": "707-320", "F/A-18": "F/A-18", "BAE 146-200": "BAE 146-200"},
    ),
    "OxfordIIITPet": (
        write_oxford_pet,
        {
            ("Abyssinian", 1): "Abyssinian",
            ("american_bulldog", 2): "american bulldog",
            ("yorkshire_terrier", 37): "yorkshire terrier",
        },
    ),
    "Food101": (
        write_food101,
        {
            "waffles": "waffles",
            "apple_pie": "apple pie",
            "macaroni_and_cheese": "macaroni and cheese",
        },
    ),
    "GTSRB": (write_gtsrb, {0: "red and white circle 20 kph speed limit", 14: "stop"}),
    "FER2013": (write_fer2013, {0: "angry", 3: "happy", 6: "neutral"}),
    "StanfordCars": (
        write_stanford_cars,
        {
            name: name
            for name in (
                "smart fortwo Convertible 2012",
                "Ram C/V Cargo Van Minivan 2012",
                "AM General Hummer SUV 2000",
            )
        },
    ),
    "SUN397": (
        write_sun397,
        {
            "a/abbey": "abbey",
            "j/jail/indoor": "jail indoor",
            "j/jail_cell": "jail cell",
        },
    ),
    "Caltech101": (
        write_caltech101,
        {"Faces": "off-center face", "accordion": "accordion", "airplanes": "airplane"},
    ),
}
