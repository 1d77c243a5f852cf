"""A web page and an HTTP API around a predictor.

May import every room above: `answers` and what that may import, and the embedded data for its examples.
"""
