from pathlib import Path

import pytest

from tests.data_pipelines.checking.run import Check
from tests.data_pipelines.make import picture


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures of 60 x 40."""
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        picture(tmp_path / "images", name)
    return tmp_path / "images"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    return Check(tmp_path, monkeypatch, capsys)
