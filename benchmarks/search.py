"""PrototypeIndex against scikit-learn and plain FAISS: the same vectors, queries and
threads, one run; ratios of queries per second.

python benchmarks/search.py [--vectors 200000] [--dim 512] [--clustered 200000]
    [--clusters 2000] [--threads 2] [--rounds 5]
"""

import argparse
import statistics
import time

import faiss
import numpy as np
import pandas as pd
import sklearn
import torch
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


def medians(contenders, rounds):
    """Median seconds of each contender over interleaved rounds, after one call to warm
    up."""
    seconds = {name: [] for name in contenders}
    for search in contenders.values():
        search()
    for _ in range(rounds):
        for name, search in contenders.items():
            start = time.perf_counter()
            search()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


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


def measure_exact(vectors, queries, k, rounds):
    """A row a batch size: milliseconds a call, and how many times as fast
    PrototypeIndex is."""
    flat, ours, brute = (
        faiss.IndexFlatIP(vectors.shape[1]),
        PrototypeIndex(vectors),
        NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors),
    )
    flat.add(vectors)
    for size in (1, 4, 16, 100, 250, 1000):
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
        seconds = medians(contenders, rounds)
        yield {
            "batch": size,
            **{f"{name} (ms)": 1000 * value for name, value in seconds.items()},
            **{
                f"vs {name}": seconds[name] / seconds["PrototypeIndex"]
                for name in ("scikit-learn", "FAISS")
            },
            "same neighbours": agree,
        }


def measure_approximate(vectors, queries, k, rounds):
    """A row a kind and effort: recall, and throughput over that of the exact index, for
    all queries at once and for 16 of them."""
    exact = PrototypeIndex(vectors)
    truth = exact.search(queries, k)[1]
    for kind, efforts in {
        "ivf": (2, 4, 8, 16),
        "ivfpq": (8, 32),
        "hnsw": (16, 32, 64),
    }.items():
        start = time.perf_counter()
        index = PrototypeIndex(vectors, kind, links=16)
        built = time.perf_counter() - start
        for index.effort in efforts:
            recall = (
                np.mean(
                    [
                        len(np.intersect1d(*pair))
                        for pair in zip(index.search(queries, k)[1], truth)
                    ]
                )
                / k
            )
            row = {
                "kind": kind,
                "effort": index.effort,
                "build (s)": built,
                f"recall@{k}": recall,
            }
            for size in (16, len(queries)):
                batch = queries[:size]
                seconds = medians(
                    {
                        "exact": lambda: exact.search(batch, k),
                        kind: lambda: index.search(batch, k),
                    },
                    rounds,
                )
                row[f"x exact, batch {size}"] = seconds["exact"] / seconds[kind]
            yield row


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
    show(measure_exact(vectors, queries, 10, options.rounds))
    vectors, queries = (
        clustered(options.clustered, dim, options.clusters, 0),
        clustered(1000, dim, options.clusters, 1),
    )
    print(
        f"\nApproximate search, k = 10, {options.clustered:,} vectors of {dim} "
        f"dimensions around {options.clusters:,} centres"
    )
    show(measure_approximate(vectors, queries, 10, options.rounds))


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
