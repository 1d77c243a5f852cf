"""Messages of the readers: records that cannot be read, and notes."""

from dataclasses import dataclass, field
from typing import NamedTuple


class Problem(NamedTuple):
    """A message and the place in the file that it refers to."""

    where: str
    what: str


@dataclass
class Problems:
    """With `keep`, unreadable records are listed in `found` and left out. Without it, the first one raises its error."""

    keep: bool = False
    found: list[Problem] = field(default_factory=list)  # unreadable records; empty without `keep`
    notes: list[Problem] = field(default_factory=list)  # harmless corrections
