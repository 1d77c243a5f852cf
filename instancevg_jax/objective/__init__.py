"""Matching of queries to targets, and the loss.

May import the ground floor and `models`."""
