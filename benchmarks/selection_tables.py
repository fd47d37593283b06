"""Tables and a picture of what `selection.py` wrote: what scores choose, and lose."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from clipadapt.judge.selection import (
    POOL_SCORES,
    SCORES,
    TOGETHER,
    rank_quality,
    rank_together,
)

EVERY = (*SCORES, *POOL_SCORES, "three_together")
ALWAYS = {"always the default": "AnchoredMixture", "always zero-shot": "ZeroShot"}
WANTED = 0.7  # the rank correlation that would be good enough


def read_pools(path: str | Path) -> pd.DataFrame:
    """A row a method and pool: data, set (of the pool), method, accuracy and scores.

    path: of JSON lines, a pool each.
    """
    rows = []
    for line in map(json.loads, Path(path).read_text().splitlines()):
        about = {name: line[name] for name in ("data", "regime", "seed")}
        pool = {**about, "set": ", ".join(map(str, about.values()))}
        rows += [{**pool, "method": m, **found} for m, found in line["methods"].items()]
    missing = dict.fromkeys(EVERY, np.nan)
    table = pd.DataFrame([missing | row for row in rows])
    ranks = [rank_together(pool, TOGETHER) for _, pool in table.groupby("set")]
    return table.assign(three_together=pd.concat(ranks))


def quality(table: pd.DataFrame) -> pd.DataFrame:
    """How well each score chooses, and what it costs to choose nothing.

    table: of `read_pools`.

    Returns what `rank_quality` does, without scores that nowhere are known, and below
    a row for each of `ALWAYS`, which has only a regret and the number of pools.
    """
    found = rank_quality(table, EVERY).dropna(how="all", subset=["spearman", "regret"])
    best = table.groupby("set")["accuracy"].max()
    for words, method in ALWAYS.items():
        taken = table[table["method"] == method].set_index("set")["accuracy"]
        lost = 100 * (best - taken).dropna()
        found.loc[words] = {"regret": lost.mean(), "sets": len(lost)}
    return found


def by_data(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of `quality` for each kind of data, and the mean of the kinds.

    table: of `read_pools`.
    column: "spearman", "worst" or "regret".
    """
    kinds = table.groupby("data", sort=False)
    columns = {data: quality(pools)[column] for data, pools in kinds}
    found = pd.DataFrame(columns).reindex([*EVERY, *ALWAYS]).dropna(how="all")
    return found.assign(mean=found.mean(axis=1))


SHOWN = [score for score in EVERY if score != "objective"]  # it compares only mixtures


def show_quality(table: pd.DataFrame, title: str, scores=SHOWN) -> Figure:
    """Rank correlation and regret of each score, a dot for each kind of data.

    table: of `read_pools`.
    title: of the picture.
    scores: which to show; those of `ALWAYS` are always there.
    """
    panels = {
        "spearman": "rank correlation with accuracy",
        "regret": "points lost by taking its first",
    }
    order = by_data(table, "spearman")["mean"].reindex(scores).dropna()
    names = [*order.sort_values().index, *ALWAYS][::-1]
    figure, axes = plt.subplots(
        1, 2, figsize=(11, 1.2 + 0.33 * len(names)), sharey=True
    )
    for panel, (column, words) in zip(axes, panels.items()):
        values = by_data(table, column).reindex(names).drop(columns="mean")
        for data, marker in zip(values, "osD^v"):
            panel.scatter(
                values[data], range(len(names)), s=60, marker=marker, label=data
            )
        panel.set(xlabel=words)
    axes[0].axvline(0, color="grey", lw=1)
    axes[0].axvline(WANTED, color="green", ls="--", lw=1)
    axes[0].text(WANTED, len(names) - 0.4, "wanted", color="green", ha="center")
    axes[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes[0].set_xticks([-1, -0.5, 0, 0.5, 1])
    axes[0].set(xlim=(-1, 1), ylim=(-0.6, len(names) - 0.4))
    axes[1].set_xlim(left=-0.5)
    axes[1].legend(loc="lower right")
    figure.suptitle(title)
    figure.tight_layout()
    return figure
