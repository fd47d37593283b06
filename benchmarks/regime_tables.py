"""Tables and pictures of what `regimes.py` wrote: gains over zero-shot, in points."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from regime_data import REGIMES

ANSWERS = {
    "pool": "the pool itself",
    "new": "new images, distributed as the pool",
    "balanced": "new images, balanced",
}
MEAN, WORST, NEAR, SHARE = -0.5, -6.0, 1.0, 0.75  # what the default promises


def read_results(path: str | Path) -> pd.DataFrame:
    """The lines of a file, with a column `gain_...` for each of `ANSWERS`.

    path: of JSON lines.
    """
    found = pd.read_json(path, lines=True)
    for answer in ANSWERS:
        found[f"gain_{answer}"] = found[answer] - found[f"zero_shot_{answer}"]
    return found


def table(results: pd.DataFrame, answer: str, how: str = "mean") -> pd.DataFrame:
    """Gains of methods (rows) in regimes (columns).

    The best mean first; those that were not run in every regime last.

    results: of one kind of data, or of several, which then count the same.
    answer: one of `ANSWERS`.
    how: "mean" of the seeds, or "min", the worst of them.
    """
    keys, gain = ["method", "regime"], f"gain_{answer}"
    if how == "mean":
        means = results.groupby([*keys, "data"])[gain].mean()
        gains = means.groupby(keys).mean().unstack()
    else:
        gains = results.groupby(keys)[gain].min().unstack()
    gains = gains[[regime for regime in REGIMES if regime in gains]]
    about = pd.DataFrame({"gaps": gains.isna().any(axis=1), "mean": gains.mean(axis=1)})
    return gains.loc[about.sort_values(["gaps", "mean"], ascending=[True, False]).index]


def without_loss(results: pd.DataFrame, answer: str) -> list[str]:
    """Methods that were run in every regime, and nowhere lose half a point on average.

    results: see `table`.
    answer: one of `ANSWERS`.
    """
    lowest = table(results, answer).drop(index="ZeroShot", errors="ignore")
    lowest = lowest.min(axis=1, skipna=False)
    return lowest.index[lowest >= MEAN].tolist()


def show_gains(
    results: pd.DataFrame, answer: str, title: str, methods: Sequence[str] | None = None
) -> Figure:
    """A table as a picture: colour and large figure are the mean, the small one is the
    worst seed.

    results: see `table`.
    answer: one of `ANSWERS`.
    title: of the picture.
    methods: which to show, in this order; None: all, the best first.
    """
    means, worst = table(results, answer), table(results, answer, "min")
    means = means.drop(index="ZeroShot", errors="ignore")
    if methods is not None:
        means = means.reindex([name for name in methods if name in means.index])
    rows, columns = means.shape
    size = (1 + 0.85 * columns, 1.6 + 0.4 * rows)
    figure, axes = plt.subplots(figsize=size, dpi=80)
    norm = TwoSlopeNorm(0, -20, 20)
    axes.imshow(means, cmap="RdBu", norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        if np.isfinite(value):
            ink = "white" if abs(value) > 12 else "black"
            low = worst.loc[means.index[row], means.columns[column]]
            place = {"ha": "center", "color": ink}
            axes.text(column, row - 0.08, f"{value:+.1f}", fontsize=9, **place)
            axes.text(column, row + 0.34, f"{low:+.0f}", fontsize=6, **place)
    axes.set_xticks(range(columns), means.columns, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(rows), means.index, fontsize=9)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("large: mean gain over zero-shot; small: worst run (points)")
    axes.tick_params(length=0)
    figure.tight_layout()
    return figure


def _long(results: pd.DataFrame) -> pd.DataFrame:
    """A row a run and answer, with one column for the gain."""
    columns = [f"gain_{answer}" for answer in ANSWERS]
    return results.melt(["data", "regime", "method", "seed"], columns, "answer", "gain")


def overview(results: pd.DataFrame) -> pd.DataFrame:
    """Each method over all kinds of data, folders and answers, the safest first.

    results: of `read_results`.

    The mean gain, the lowest mean of a folder, the worst run, and the share of folders
    whose mean is more than half a point below zero-shot. A folder is one regime of one
    kind of data; each answer counts as one.
    """
    keys = ["data", "regime", "answer", "method"]
    long = _long(results)
    folders = long.groupby(keys)["gain"].agg(["mean", "min"]).reset_index()
    found = folders.groupby("method").agg(
        mean=("mean", "mean"),
        lowest_folder=("mean", "min"),
        worst_run=("min", "min"),
        folders_below=("mean", lambda means: (means < MEAN).mean()),
        kinds_of_data=("data", "nunique"),
    )
    return found.sort_values("lowest_folder", ascending=False)


def cells(results: pd.DataFrame, method: str) -> pd.DataFrame:
    """For each kind of data, regime and answer: a method's mean and worst gain.

    results: of `read_results`.
    method: whose.

    The column `best` is the highest mean of any other method that was run there, and
    `rival` says whose; the same method with other constants ("name, ...") does not
    count.
    """
    long = _long(results)
    keys = ["data", "regime", "answer"]
    gains = long.groupby([*keys, "method"])["gain"].agg(["mean", "min"])
    own = gains.xs(method, level="method")
    means = gains["mean"].unstack()
    others = [name for name in means if name.split(",")[0] != method]
    rivals = means[others].reindex(own.index)
    own = own.assign(best=rivals.max(axis=1), rival=rivals.idxmax(axis=1))
    return own.rename(columns={"min": "worst"})


def promises(results: pd.DataFrame, method: str = "AnchoredMixture") -> pd.DataFrame:
    """Whether the default keeps what it promises, for each kind of data and answer.

    results: of `read_results`.
    method: the default.

    Lowest mean of a regime (at least -0.5 point), worst run (at least -6), and the
    share of regimes in which the mean is within a point of the best method (at least
    three quarters).
    """
    found = cells(results, method).reset_index()
    found["near"] = found["mean"] >= found["best"] - NEAR
    kept = found.groupby(["data", "answer"]).agg(
        lowest_mean=("mean", "min"),
        worst_run=("worst", "min"),
        near_best=("near", "mean"),
    )
    holds = (
        (kept.lowest_mean >= MEAN)
        & (kept.worst_run >= WORST)
        & (kept.near_best >= SHARE)
    )
    return kept.round(2).assign(holds=holds)
