"""Annotation files in all the layouts that exist, read into `Record`s.

May import `records`, `masks`, and the ground floor of `instancevg_jax`."""
