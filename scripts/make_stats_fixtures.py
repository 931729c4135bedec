#!/usr/bin/env python3
"""Golden values of the evaluation's statistics, made with lm-eval 0.4.13, scipy 1.17.1 and statsmodels 0.15.0 on Python 3.11
(3.12's `sum` rounds otherwise): tests/fixtures/stats.json."""

import importlib.util
import json
import random
import sys
import types
from math import comb
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent


def lm_eval_metrics():
    """lm_eval/api/metrics.py by itself: its imports reach far."""
    path = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "api" / "metrics.py"
    registry = types.ModuleType("lm_eval.api.registry")
    registry.register_aggregation = registry.register_metric = lambda *_, **__: lambda function: function
    sys.modules |= {"lm_eval.api.registry": registry, "sacrebleu": types.ModuleType("sacrebleu")}
    module = types.ModuleType("metrics")
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def wilson(right, n, level):
    interval = stats.binomtest(right, n).proportion_ci(confidence_level=level, method="wilson")
    return [right, n, level, float(interval.low), float(interval.high)]


def paired(rng, n, shift, binary):
    a = [rng.random() for _ in range(n)]
    b = [x + rng.gauss(shift, 0.3) for x in a]
    if binary:
        a, b = [float(x > 0.5) for x in a], [float(x > 0.5) for x in b]
    differences = np.array(b) - np.array(a)
    interval = stats.ttest_rel(b, a).confidence_interval(0.95)
    gained, lost = int((differences == 1).sum()), int((differences == -1).sum())
    # statsmodels' mcnemar(exact=True) is this binomial test.
    p = stats.binomtest(min(gained, lost), gained + lost, 0.5).pvalue if binary else stats.ttest_rel(b, a).pvalue
    low, high = agresti_min(gained, lost, n, p) if binary else (float(interval.low), float(interval.high))
    return {"a": a, "b": b, "difference": float(differences.mean()), "p": float(p), "low": low, "high": high}


def agresti_min(gained, lost, n, p):
    """Agresti and Min 2005: 0.5 is added to each cell; what the exact test does not reject stays within."""
    cells = np.array([gained, lost, (n - gained - lost) / 2, (n - gained - lost) / 2]) + 0.5
    gained, lost = cells[0] / cells.sum(), cells[1] / cells.sum()
    half = stats.norm.ppf(0.975) * np.sqrt((gained + lost - (gained - lost) ** 2) / cells.sum())
    low, high = max(gained - lost - half, -1.0), min(gained - lost + half, 1.0)
    return (float(low), float(high)) if p <= 0.05 else (float(min(low, 0)), float(max(high, 0)))


def main():
    metrics = lm_eval_metrics()
    rng = random.Random(1)
    samples = [[float(rng.random() < p) for _ in range(n)] for n, p in [(2, 0.5), (30, 0.7), (1319, 0.7), (500, 0.02)]]
    samples.append([rng.gauss(0, 1) for _ in range(100)])
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.proportion import proportion_confint

    assert abs(proportion_confint(7, 30, method="wilson")[0] - wilson(7, 30, 0.95)[3]) < 1e-12
    assert abs(mcnemar([[5, 3], [9, 5]], exact=True).pvalue - stats.binomtest(3, 12, 0.5).pvalue) < 1e-12
    golden = {
        "mean": [{"values": s, "mean": metrics.mean(s), "stderr": metrics.mean_stderr(s)} for s in samples],
        "wilson": [wilson(*case) for case in [(0, 10, 0.95), (1, 10, 0.95), (700, 1000, 0.95), (164, 164, 0.99), (15, 30, 0.5)]],
        "binomial": [[k, n, float(stats.binomtest(k, n, 0.5).pvalue)] for k, n in
                     [(0, 1), (0, 6), (3, 12), (5, 10), (40, 100), (400, 1000), (100, 1000), (4900, 10000)]],
        "t": [[t, df, float(2 * stats.t.sf(abs(t), df))] for t, df in
              [(0.0, 5), (1.0, 1), (2.0, 3), (-2.5, 29), (1.96, 1318), (10.0, 50), (0.01, 2), (30.0, 1000)]],
        "quantile": [[p, df, float(stats.norm.ppf(p) if df == 0 else stats.t.ppf(p, df))] for p in [0.001, 0.1, 0.6, 0.975, 0.9999]
                     for df in [0, 1, 2, 10, 1000]],
        "pass_at_k": [[n, c, k, 1.0 - comb(n - c, k) / comb(n, k)] for n, c, k in
                      [(1, 0, 1), (1, 1, 1), (10, 3, 1), (10, 3, 5), (64, 2, 32), (64, 60, 8), (200, 1, 100)]],
        "paired": [paired(rng, n, shift, binary) for n, shift, binary in
                   [(40, 0.1, False), (200, 0.0, False), (100, 0.2, True), (300, 0.02, True)]],
    }
    (ROOT / "tests" / "fixtures" / "stats.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
