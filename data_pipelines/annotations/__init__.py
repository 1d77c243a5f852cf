"""Annotation files in all the layouts that exist, read into `Record`s. `reading.read` recognizes the layout.

May import `records`, `masks`, and the ground floor and `pickles` of `instancevg_jax`."""
