"""The pictures that annotations name: whether they can be read, their sizes, and their EXIF orientation."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from data_pipelines.annotations.pictures import why_missing
from instancevg_jax.errors import InputError
from instancevg_jax.inputs.pictures import load_picture, picture_size


class PictureInfo(NamedTuple):
    """The size of a picture, or the kind of its fault."""

    size: tuple[int, int] | None  # (height, width) as it is shown, EXIF orientation applied
    kind: str = ""
    detail: str = ""
    orientation: int = 1  # EXIF's: 1 upright, 2 mirrored, 3 upside down, 4 both, 5 to 8 with height and width exchanged

    @property
    def stored_size(self) -> tuple[int, int] | None:
        """(height, width) of the file's pixels before EXIF orientation is applied."""
        return (self.size[1], self.size[0]) if self.size and self.orientation >= 5 else self.size


def look_at_pictures(names: Sequence[str], folder: Path, num_workers: int) -> dict[str, PictureInfo]:
    """Decode every named picture once, with a progress bar on stderr."""
    with ThreadPoolExecutor(num_workers) as pool:
        found = pool.map(lambda name: _look_at(folder / name), names)
        bar = tqdm(found, desc="reading pictures", total=len(names), unit=" pictures", mininterval=0.5)
        return dict(zip(names, bar, strict=True))


def _look_at(path: Path) -> PictureInfo:
    try:
        if not path.is_file():
            return PictureInfo(None, "missing picture", f"{path}{why_missing(path)}")
        height, width = load_picture(path).shape[:2]
        return PictureInfo((height, width), orientation=picture_size(path)[2])
    except (InputError, OSError) as error:
        return PictureInfo(None, "corrupt picture", str(error))
