"""PrototypeIndex against scikit-learn and plain FAISS: the same vectors, queries and
threads, one run; ratios of queries per second.

python benchmarks/search.py [--vectors 200000] [--dim 512] [--clustered 200000]
    [--clusters 2000] [--threads 2] [--rounds 5]
"""

import argparse

import faiss
import numpy as np
import pandas as pd
import sklearn
import torch
from measuring import Row, medians, spent
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_info, threadpool_limits

from clipadapt.clip.index import PrototypeIndex


def units(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count, dim, clusters, seed):
    """Unit vectors around random centres, which are the same for every seed; noise as
    long as the centres."""
    rng = np.random.default_rng(seed)
    centres = units(
        np.random.default_rng(99).standard_normal((clusters, dim), np.float32)
    )
    return units(
        centres[rng.integers(clusters, size=count)]
        + rng.standard_normal((count, dim), np.float32) / dim**0.5
    )


def plain_faiss(index, queries, k, threshold=None):
    """FAISS as it comes, or with its threshold for matrix products set."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = (
        before if threshold is None else threshold
    )
    try:
        return index.search(queries, k)[1]
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def measure_exact(vectors, queries, k, rounds, sizes=(1, 4, 16, 100, 250, 1000)):
    """For each batch size what the contenders took, and the share of neighbours that
    PrototypeIndex and scikit-learn both find."""
    flat, ours, brute = (
        faiss.IndexFlatIP(vectors.shape[1]),
        PrototypeIndex(vectors),
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors),
    )
    flat.add(vectors)
    for size in sizes:
        batch = queries[:size]
        contenders = {
            "scikit-learn": lambda: brute.kneighbors(batch, return_distance=False),
            "FAISS": lambda: plain_faiss(flat, batch, k),
            "FAISS, threshold 1": lambda: plain_faiss(flat, batch, k, 1),
            "PrototypeIndex": lambda: ours.search(batch, k)[1],
        }
        agree = (
            np.mean(
                [
                    len(np.intersect1d(*pair))
                    for pair in zip(
                        contenders["PrototypeIndex"](), contenders["scikit-learn"]()
                    )
                ]
            )
            / k
        )
        yield size, medians(contenders, rounds), agree


def in_milliseconds(measured):
    """Rows for the eye: milliseconds a call, and how many times as fast PrototypeIndex
    is."""
    for size, times, agree in measured:
        yield {
            "batch": size,
            **{f"{name} (ms)": 1000 * took.wall for name, took in times.items()},
            **{
                f"vs {name}": times[name].wall / times["PrototypeIndex"].wall
                for name in ("scikit-learn", "FAISS")
            },
            "same neighbours": agree,
        }


EFFORTS = {"ivf": (2, 4, 8, 16), "ivfpq": (8, 32), "hnsw": (16, 32, 64)}


def measure_approximate(vectors, queries, k, rounds, efforts=EFFORTS):
    """For each kind and effort: seconds to build, recall, and what the exact index and
    this one took, for 16 queries and for all at once."""
    exact = PrototypeIndex(vectors)
    truth = exact.search(queries, k)[1]
    for kind, tried in efforts.items():
        built, index = spent(lambda: PrototypeIndex(vectors, kind, links=16))
        for index.effort in tried:
            recall = (
                np.mean(
                    [
                        len(np.intersect1d(*pair))
                        for pair in zip(index.search(queries, k)[1], truth)
                    ]
                )
                / k
            )
            times = {}
            for size in (16, len(queries)):
                batch = queries[:size]
                pair = {
                    "exact": lambda: exact.search(batch, k),
                    "this": lambda: index.search(batch, k),
                }
                times[size] = medians(pair, rounds)
            yield kind, index.effort, built.wall, recall, times


def as_ratios(measured, k):
    """Rows for the eye: recall, and throughput over that of the exact index."""
    for kind, effort, built, recall, times in measured:
        yield {
            "kind": kind,
            "effort": effort,
            "build (s)": built,
            f"recall@{k}": recall,
            **{
                f"x exact, batch {size}": pair["exact"].wall / pair["this"].wall
                for size, pair in times.items()
            },
        }


def rows(vectors=200_000, dim=512, clusters=2000, rounds=3):
    """Exact search against others, and an approximate index against the exact one."""
    rng, found = np.random.default_rng(0), []
    with threadpool_limits(torch.get_num_threads()):
        many, queries = (
            units(rng.standard_normal((count, dim), np.float32))
            for count in (vectors, 1000)
        )
        sizes = 1, 16, 100, 1000
        for size, times, _ in measure_exact(many, queries, 10, rounds, sizes):
            task = f"10 nearest of {vectors:,} x {dim}, {size:,} at a time"
            for other, asked in {
                "scikit-learn": 1,
                "FAISS": 3 if size == 100 else None,
            }.items():
                pair = times["PrototypeIndex"], times[other]
                found.append(
                    Row("clip", task, "`PrototypeIndex`", other, *pair, asked, "wall")
                )
        many, queries = (clustered(n, dim, clusters, n) for n in (vectors, 1000))
        for kind, effort, _, recall, times in measure_approximate(
            many, queries, 10, rounds, {"ivf": (8,)}
        ):
            for size, pair in times.items():
                task = f"the same around {clusters:,} centres, {size:,} at a time"
                ours = f"{kind}, effort {effort}, recall {recall:.3f}"
                given = pair["this"], pair["exact"], 5, "wall"
                found.append(Row("clip", task, ours, "exact", *given))
    return found


def show(rows):
    print(
        pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format),
        flush=True,
    )


def main(options):
    blas = [
        f"{library['version']} for {library['architecture']}"
        for library in threadpool_info()
        if library["user_api"] == "blas" and "faiss" in library["filepath"]
    ]
    print(
        f"faiss {faiss.__version__}, scikit-learn {sklearn.__version__}, torch "
        f"{torch.__version__}, numpy {np.__version__}, {options.threads} threads"
    )
    print(
        f"FAISS's threshold {faiss.cvar.distance_compute_blas_threshold}, its "
        f"OpenBLAS {', '.join(blas) or 'not found'}"
    )
    rng, dim = np.random.default_rng(0), options.dim
    vectors, queries = (
        units(rng.standard_normal((count, dim), np.float32))
        for count in (options.vectors, 1000)
    )
    print(f"\nExact search, k = 10, {options.vectors:,} vectors of {dim} dimensions")
    show(in_milliseconds(measure_exact(vectors, queries, 10, options.rounds)))
    vectors, queries = (
        clustered(options.clustered, dim, options.clusters, 0),
        clustered(1000, dim, options.clusters, 1),
    )
    print(
        f"\nApproximate search, k = 10, {options.clustered:,} vectors of {dim} "
        f"dimensions around {options.clusters:,} centres"
    )
    show(as_ratios(measure_approximate(vectors, queries, 10, options.rounds), 10))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {
        "vectors": 200_000,
        "dim": 512,
        "clustered": 200_000,
        "clusters": 2000,
        "threads": 2,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    with threadpool_limits(options.threads):
        main(options)
