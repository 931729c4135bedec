"""Draws accuracy against seconds of training: plot.py results.jsonl OUT.svg   (needs matplotlib)."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "arle"
from matplotlib import pyplot


def main(results, out):
    rows = [json.loads(line) for line in pathlib.Path(results).read_text().splitlines()]
    base = next(row for row in rows if row["arm"] == "base")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for row in rows:
        if row is not base:
            points = [base["points"][0], *row["points"]]
            axes.plot([p[0] for p in points], [100 * p[1] for p in points], marker="o", markersize=3, linewidth=1.2, label=row["arm"])
    axes.axhline(100 * base["teacher"], color="gray", linewidth=0.8, linestyle="--")
    axes.text(0, 100 * base["teacher"], "teacher", va="bottom", color="gray")
    axes.set(xlabel="seconds of training", ylabel=f"right answers, % of {base['n']}")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


main(*sys.argv[1:])
