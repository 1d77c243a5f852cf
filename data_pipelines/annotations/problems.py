"""The records that could not be read, and what was done about others."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Problem(NamedTuple):
    """One message and the place that it is about."""

    where: str
    what: str


@dataclass
class Problems:
    """What readers report. With `keep`, unreadable records are listed in `found` and left out; without, the first one raises."""

    keep: bool = False
    found: list[Problem] = field(default_factory=list)  # records that cannot be read; empty without `keep`
    notes: list[Problem] = field(default_factory=list)  # what was read in another way than it is written, without harm
