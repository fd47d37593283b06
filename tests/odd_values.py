"""Values that somebody passes by mistake, and a check that a function says so."""

import numpy as np
import pandas as pd
import torch

ODD = [
    None,
    float("nan"),
    float("inf"),
    -1,
    0,
    1.5,
    True,
    "abc",
    "",
    b"x",
    [],
    [[]],
    [None],
    [np.nan] * 12,
    [[np.nan] * 3] * 12,
    np.zeros(0),
    np.zeros((0, 3)),
    np.zeros((3, 0)),
    np.zeros((2, 2, 2)),
    np.full((12, 3), np.nan, np.float32),
    np.full((12, 3), np.inf, np.float32),
    np.full((12, 3), 1e308),
    np.array([None] * 12, object),
    np.array([["a"] * 3] * 12),
    np.array([2**62] * 12),
    np.full(12, 2**63, np.uint64),
    [2**70] * 12,
    [-5] * 12,
    [[1, 2], [3]],
    {},
    {"a": 1},
    {1, 2},
    object(),
    torch.zeros(0),
    torch.full((12, 3), float("nan")),
    torch.zeros((12, 3), dtype=torch.bfloat16),
    torch.zeros((12, 3), dtype=torch.complex64),
    np.array([1 + 2j] * 12),
    np.array(["2020-01-01"] * 12, "datetime64[D]"),
    lambda x: x,
    pd.DataFrame(),
    pd.Series(dtype=float),
    10**30,
    -(10**30),
    np.float32(0.5),
    np.int64(-3),
]


def escapes(function, arguments, places):
    """What leaves `function` as another error than a ValueError or FileNotFoundError
    when an argument at one of `places` is an odd value."""
    found = []
    for place in places:
        for value in ODD:
            odd = [*arguments]
            odd[place] = value
            try:
                function(*odd)
            except (ValueError, FileNotFoundError):
                continue
            except Exception as error:
                found.append(
                    (place, repr(value)[:40], f"{type(error).__name__}: {error}"[:80])
                )
    return found
