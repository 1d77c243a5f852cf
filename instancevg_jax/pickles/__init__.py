"""Pickles as data: a bounded reader that imports, calls and builds nothing.

May import the ground floor only. Checkpoint files and annotation files are read with it."""
