"""Read a pickle of plain containers, numbers and strings, and nothing else.

The refer API ships its sentences as pickles. A pickle may name any function and have it called; here every name is refused,
so that nothing but None, bool, int, float, complex, str, bytes, list, tuple, dict, set and frozenset can come out.
"""

import pickle
from pathlib import Path
from typing import Any

from instancevg_jax.errors import InputError, first_line

# what the unpickler raises for bytes that no pickler wrote
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    MemoryError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    ValueError,
    OverflowError,
    RecursionError,
)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise InputError(f"the pickle asks for {module_name}.{global_name}; expected plain lists, dicts and strings")


def load(path: Path) -> Any:
    """The content of a pickle file. Raises InputError where it names anything beyond plain data, or is damaged."""
    with path.open("rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except _DAMAGED as error:
            raise InputError(f"{path}: not a pickle, or a damaged one ({first_line(error)})") from error
