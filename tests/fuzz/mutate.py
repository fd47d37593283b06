"""Ways to spoil bytes, JSON and arrays. All randomness comes from the `dice` given."""

import json
import random
from collections.abc import Callable

import numpy as np

EDGES = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
]
# no path here leads out of the folder of a test
ODD_TEXTS = [
    "",
    " ",
    "\n",
    "\r",
    "\0",
    "a\0b",
    "\x1b[31mred\x1b[0m",
    "=1+1",
    "@SUM(A1)",
    "-1",
    "$x^$",
    "$$",
    "é",
    "é",
    "日本語",
    "\ud800",
    "\ufeff",
    "\u202eabc",
    "a/../b",
    "./x",
    "~",
    "a" * 1500,
    "nan",
    "None",
    "-inf",
    "true",
    "1e999",
    "{}",
    "{",
    "%s%n",
    "cat,dog",
    "a\tb",
    "🐈",
    "con",
    "x.py",
    "local-dir:x",
    "hf-hub:a/b",
]
ODD_NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    10,
    255,
    10**6,
    2**31,
    2**53 + 1,
    -(2**63),
    2**64,
    10**30,
    10**400,
    0.0,
    -0.0,
    0.5,
    1.5,
    -0.5,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
]
_DEEP = "a place for deep nesting"


def _flip(dice: random.Random, content: bytearray, other: bytes) -> None:
    for _ in range(dice.choice([1, 1, 1, 2, 8])):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)


def _set_bytes(dice: random.Random, content: bytearray, other: bytes) -> None:
    for _ in range(dice.choice([1, 2, 4, 16])):
        content[dice.randrange(len(content))] = dice.choice(
            [0, 1, 127, 128, 254, 255, dice.randrange(256)]
        )


def _truncate(dice: random.Random, content: bytearray, other: bytes) -> None:
    del content[dice.randrange(len(content)) :]


def _edge(dice: random.Random, content: bytearray, other: bytes) -> None:
    width = dice.choice([1, 2, 4, 8])
    value = (dice.choice(EDGES) % 256**width).to_bytes(
        width, dice.choice(["little", "big"])
    )
    place = dice.randrange(len(content))
    content[place : place + width] = value


def _splice(dice: random.Random, content: bytearray, other: bytes) -> None:
    length, start = dice.randrange(1, 200), dice.randrange(len(other) + 1)
    place = dice.randrange(len(content) + 1)
    content[place : place + dice.choice([0, length])] = other[start : start + length]


def _remove(dice: random.Random, content: bytearray, other: bytes) -> None:
    place = dice.randrange(len(content))
    del content[place : place + dice.randrange(1, 64)]


def _repeat(dice: random.Random, content: bytearray, other: bytes) -> None:
    place = dice.randrange(len(content))
    content[place:place] = content[place : place + dice.randrange(1, 64)] * dice.choice(
        [1, 2, 100]
    )


def _append(dice: random.Random, content: bytearray, other: bytes) -> None:
    content += dice.choice([b"\0", dice.randbytes(20), other[:100]])


def _join(dice: random.Random, content: bytearray, other: bytes) -> None:
    """The beginning of one file and the end of another."""
    content[dice.randrange(len(content)) :] = other[dice.randrange(len(other) + 1) :]


_BYTES = [
    _flip,
    _flip,
    _flip,
    _set_bytes,
    _set_bytes,
    _truncate,
    _edge,
    _edge,
    _splice,
    _remove,
    _repeat,
    _append,
    _join,
]


def mutate_bytes(
    dice: random.Random, content: bytes, other: bytes = b"", head: int | None = None
) -> bytes:
    """`content` with one to three mutations; `other` is a file to take pieces of.

    Every second time only the first `head` bytes are changed, where formats keep sizes.
    """
    front = (
        len(content) if head is None or dice.random() < 0.5 else min(head, len(content))
    )
    changed = bytearray(content[:front])
    for _ in range(dice.choice([1, 1, 2, 3])):
        if changed:
            dice.choice(_BYTES)(dice, changed, other or content)
    return bytes(changed + content[front:])


def odd_value(dice: random.Random):
    """A JSON value of any kind."""
    kind = dice.randrange(6)
    if kind == 0:
        return dice.choice(ODD_TEXTS)
    if kind == 1:
        return dice.choice(ODD_NUMBERS)
    if kind == 2:
        return dice.choice([None, True, False])
    if kind == 3:
        return [odd_value(dice) for _ in range(dice.choice([0, 1, 2, 10]))]
    if kind == 4:
        return {
            dice.choice(ODD_TEXTS): odd_value(dice)
            for _ in range(dice.choice([0, 1, 3]))
        }
    return _DEEP if dice.random() < 0.2 else dice.choice([[], {}, 0, ""])


def _places(value, path=()) -> list[tuple]:
    """The paths of all values inside a JSON value, its own first."""
    paths = [path]
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        paths += _places(inner, (*path, key))
    return paths


def _change(dice: random.Random, value):
    """Another value in the place of `value`: near it, or of another kind."""
    if dice.random() < 0.4:
        return odd_value(dice)
    if isinstance(value, bool) or value is None:
        return dice.choice([True, False, None, 0, 1])
    if isinstance(value, (int, float)):
        return dice.choice(
            [
                value + 1,
                -value,
                value * 1000,
                float(value) if abs(value) < 1e300 else str(value),
                str(value),
                dice.choice(ODD_NUMBERS),
            ]
        )
    if isinstance(value, str):
        return dice.choice(
            [
                value + "x",
                value[:-1],
                value.upper(),
                [value],
                list(value),
                dice.choice(ODD_TEXTS),
            ]
        )
    if isinstance(value, list) and value:
        return dice.choice(
            [
                value[:-1],
                value + value[:1],
                value[::-1],
                value * 100,
                [value],
                value[0],
                [*value, odd_value(dice)],
            ]
        )
    if isinstance(value, dict) and value:
        without = dict(value)
        without.pop(dice.choice(sorted(value)))
        more = {
            **value,
            dice.choice(
                [*ODD_TEXTS, "model", "out", "overwrite", "__class__"]
            ): odd_value(dice),
        }
        return dice.choice([without, without, more, list(value), list(value.values())])
    return odd_value(dice)


def mutate_json(dice: random.Random, value):
    """`value` with one or two places changed, removed or added."""
    for _ in range(dice.choice([1, 1, 2])):
        *path, last = dice.choice(_places(value)) or [None]
        if last is None:
            value = _change(dice, value)
            continue
        value = json.loads(json.dumps(value))
        inner = value
        for key in path:
            inner = inner[key]
        inner[last] = _change(dice, inner[last])
    return value


def json_text(dice: random.Random, value) -> str:
    """JSON of a mutated value; sometimes not quite JSON."""
    depth = dice.choice([100, 2000, 100_000])
    deep = dice.choice(
        ["[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "1" + "}" * depth]
    )
    text = json.dumps(value, ensure_ascii=dice.random() < 0.7).replace(
        f'"{_DEEP}"', deep
    )
    if dice.random() < 0.1:
        text = dice.choice(
            [
                text[: dice.randrange(len(text) + 1)],
                text + "x",
                text + text,
                "\ufeff" + text,
                text.replace(",", ",,", 1),
                text.replace('"', "'"),
                text.replace(":", ":1e5000,", 1),
                text.replace("{", '{"format": 9, "format": 1,', 1),
            ]
        )
    return text


def _other_dtype(dice: random.Random, array: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(
            dice.choice(
                [
                    "float16",
                    "float32",
                    "float64",
                    "int8",
                    "uint8",
                    "int32",
                    "int64",
                    "uint64",
                    "bool",
                ]
            )
        )


def _other_values(dice: random.Random, array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    if changed.size:
        floats = [
            float("nan"),
            float("inf"),
            -float("inf"),
            1e30,
            -1e30,
            0,
            1,
            -1,
            1e-30,
        ]
        numbers = (
            floats
            if changed.dtype.kind == "f"
            else (
                [0, 1, 2, 100, 127]
                if changed.dtype.kind != "i"
                else [-1, -2, 0, 1, 9, 10, 100, 127]
            )
        )
        places = dice.choice(
            [slice(None), dice.randrange(changed.size), slice(0, None, 2)]
        )
        with np.errstate(all="ignore"):
            changed.reshape(-1)[places] = dice.choice(numbers)
    return changed


def _other_shape(dice: random.Random, array: np.ndarray) -> np.ndarray:
    ways: list[Callable] = [
        lambda a: a[None],
        lambda a: a.reshape(-1),
        lambda a: a.T,
        lambda a: a[..., None],
        lambda a: a.reshape(-1)[:0],
        lambda a: np.concatenate([a.reshape(-1), a.reshape(-1)]),
    ]
    if array.ndim:
        ways += [
            lambda a: a[:-1],
            lambda a: a[1:],
            lambda a: np.concatenate([a, a]),
            lambda a: a[:0],
            lambda a: a[..., :-1],
            lambda a: a[0],
        ]
    return dice.choice(ways)(array) if array.size else array[None]


def mutate_arrays(
    dice: random.Random, arrays: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`arrays` with one of them changed, dropped, renamed, exchanged, or one more."""
    changed = dict(arrays)
    names = sorted(changed)
    name, other = dice.choice(names), dice.choice(names)
    kind = dice.randrange(10)
    if kind == 0:
        del changed[name]
    elif kind == 1:
        changed[name + dice.choice(["_", "x"])] = changed.pop(name)
    elif kind == 2:
        changed[dice.choice(["more_", "clip", "fit", "predict", "__class__", ""])] = (
            np.zeros(3, np.float32)
        )
    elif kind == 3:
        changed[name], changed[other] = changed[other], changed[name]
    else:
        change = [_other_values, _other_shape, _other_dtype][kind % 3]
        changed[name] = np.ascontiguousarray(change(dice, changed[name]))
    return changed
