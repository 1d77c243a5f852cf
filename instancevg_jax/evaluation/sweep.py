"""F1, N_acc, T_acc and gIoU over score thresholds, from one pass over the data.

The threshold determines which queries count, and so the merged mask. `postprocess.thresholds_passed` encodes the masks of all
thresholds in one array of small integers, whose histogram gives their pixel counts. The results equal those of a separate
evaluation at each threshold.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from instancevg_jax.evaluation.metrics import Answer, Metrics, Row, Truth, measure_at

SWEPT = ("F1", "N_acc", "T_acc", "gIoU")


def thresholds_around(score_threshold: float) -> tuple[float, ...]:
    """0.05, 0.10 ... 0.95 and `score_threshold`, ascending."""
    return tuple(sorted({score_threshold, *(round(0.05 * i, 2) for i in range(1, 20))}))


class Sweep:
    """The rows of one split at every threshold."""

    def __init__(self, thresholds: Sequence[float], protocol: str):
        self.thresholds, self.protocol = tuple(thresholds), protocol
        self.rows: dict[int, np.ndarray] = {}  # record -> [S, columns of Row] float64

    def update(self, answer: Answer, passed: UInt8[np.ndarray, "h w"], truth: Truth, record: int) -> None:
        """Measure a record. `passed` is its `thresholds_passed`, in the pixels of the truth's mask."""
        wanted = np.full(len(self.thresholds), truth.mask.sum())
        pixels = np.stack([self._pixels(passed[truth.mask]), wanted, self._pixels(passed.ravel())], axis=1)
        rows = measure_at(self.thresholds, pixels, answer, truth, self.protocol)
        self.rows[record] = np.array([row._replace(record=record) for row in rows])

    def _pixels(self, passed: UInt8[np.ndarray, " n"]) -> Int[np.ndarray, " S"]:
        """Number of pixels of each threshold's mask."""
        counts = np.bincount(passed, minlength=len(self.thresholds) + 1)
        return counts[:0:-1].cumsum()[::-1]

    def result(self) -> dict[float, dict[str, float]]:
        """The SWEPT metrics, in percent, of every threshold; NaN where there is nothing to measure, under both protocols."""
        results = {}
        for i, threshold in enumerate(self.thresholds):
            rows = {record: Row(*values[i].tolist()) for record, values in self.rows.items()}
            metrics = Metrics("gres", threshold, self.protocol, rows).shown()
            results[threshold] = {name: metrics[name] for name in SWEPT}
        return results


def best_thresholds(results: dict[float, dict[str, float]]) -> dict[str, float]:
    """The threshold at which each metric is best (the lowest in case of a tie), without metrics that are NaN everywhere."""
    best = {}
    for name in SWEPT:
        values = {threshold: result[name] for threshold, result in results.items() if not np.isnan(result[name])}
        if values:
            best[name] = max(values, key=lambda threshold: (values[threshold], -threshold))
    return best
