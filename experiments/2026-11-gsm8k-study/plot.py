"""Draws accuracy against seconds of training and against questions seen, with 95 % intervals of the last points.

usage: plot.py results.jsonl OUT.svg   (needs matplotlib)
"""

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


def draw(axes, row, base, unit, style):
    points = [base["points"][0], *row["points"]]
    places, scores = [p[unit] for p in points], [100 * p[1] for p in points]
    about = [[100 * end] for end in wilson(points[-1][1], row["n"])]
    axes.plot(places, scores, marker="o", markersize=2.5, linewidth=1.2, **style)
    axes.errorbar(places[-1:], scores[-1:], about, color=style["color"], elinewidth=0.8, capsize=2)


def main(results, out):
    rows = [json.loads(line) for line in pathlib.Path(results).read_text().splitlines()]
    base = next(row for row in rows if row["arm"] == "base")
    # Repetitions with other seeds have the colour of the first.
    colours = {}
    for row in rows:
        if row is not base:
            colours.setdefault(row["arm"].partition(".")[0], f"C{len(colours)}")
    figure, panels = pyplot.subplots(1, 2, figsize=(9.6, 4.2), sharey=True, layout="constrained")
    for axes, unit, label in zip(panels, (0, 3), ("seconds of training", "questions seen")):
        for row in rows:
            if row is not base:
                name, _, seed = row["arm"].partition(".")
                draw(axes, row, base, unit, {"color": colours[name], "label": None if seed else name, "linestyle": ":" if seed else "-"})
        axes.set(xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set(ylabel=f"right answers, % of {base['n']:,}", ylim=(0, None))
    panels[0].text(0, 1, f"the teacher: {base['teacher']:.1%}", transform=panels[0].transAxes, color="gray", va="bottom")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    figure.savefig(out, metadata={"Date": None})


main(*sys.argv[1:])
