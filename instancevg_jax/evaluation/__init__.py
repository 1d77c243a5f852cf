"""Metrics of a split, threshold sweeps, COCO results and the HTML report.

May import `data_pipelines` and every room above: `answers` and what that may import."""
