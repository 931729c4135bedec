"""Draws accuracy against seconds of training, with 95 % intervals: plot.py results.jsonl OUT.svg   (needs matplotlib)."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "arle"
from matplotlib import pyplot


def wilson(p, n, z=1.96):
    """How far the interval of a proportion reaches below and above it (Wilson 1927)."""
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return p - (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n) - p


def main(results, out):
    rows = [json.loads(line) for line in pathlib.Path(results).read_text().splitlines()]
    base = next(row for row in rows if row["arm"] == "base")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for row in rows:
        if row is not base:
            points = [base["points"][0], *row["points"]]
            about = [[100 * end for end in ends] for ends in zip(*(wilson(p[1], row["n"]) for p in points))]
            seconds, scores = [p[0] for p in points], [100 * p[1] for p in points]
            axes.errorbar(seconds, scores, about, marker="o", markersize=3, linewidth=1.2, elinewidth=0.7, label=row["arm"])
    axes.axhline(100 * base["teacher"], color="gray", linewidth=0.8, linestyle="--")
    axes.text(0, 100 * base["teacher"], "teacher", va="bottom", color="gray")
    axes.set(xlabel="seconds of training", ylabel=f"right answers, % of {base['n']}")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


main(*sys.argv[1:])
