"""Draws the held-out KL and the training KL of a run: plot_run.py RUN_FOLDER OUT.svg   (needs matplotlib)."""

import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "arle"
from matplotlib import pyplot


def main(folder, out):
    lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    series = {"training (reverse KL)": "teacher_kl", "held out": "eval/kl", "held out, teacher's samples": "eval/kl_teacher_samples"}
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
    for label, key in series.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        marker = "" if key == "teacher_kl" else "o"
        axes.plot(*zip(*points), marker=marker, linewidth=1.2, label=label)
    axes.set(xlabel="step", ylabel="KL to the teacher, nats per token", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None})


main(*sys.argv[1:])
