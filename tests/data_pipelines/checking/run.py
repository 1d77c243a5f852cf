"""Running `data_pipelines.check` as its users do, and reading what it lists."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from data_pipelines.annotations import reading
from data_pipelines.check import main
from data_pipelines.records import Record


class Checked(NamedTuple):
    status: int
    listed: list[dict[str, Any]]  # what --list wrote
    fixed: list[Record]  # what --fix wrote
    out: str
    err: str

    @property
    def kinds(self) -> set[str]:
        return {entry["fault"] for entry in self.listed}


class Check:
    """Calls the command; the files that it writes are in `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, annotations: Path, images: Path, *flags: object, family: str = "custom") -> Checked:
        listed, fixed = self.folder / "listed.jsonl", self.folder / "new" / "fixed.jsonl"
        command = [family, "--annotations", annotations, "--images", images, "--list", listed, "--fix", fixed, *flags]
        self.monkeypatch.setattr("sys.argv", ["check", *map(str, command)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert isinstance(exit_info.value.code, int)
        entries = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
        records = reading.read(fixed) if fixed.stat().st_size else []
        out, err = self.capsys.readouterr()
        return Checked(exit_info.value.code, entries, records, out, err)


def write_lines(path: Path, *entries: dict[str, Any]) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), "utf-8")
    return path


def own(
    name: str = "1.jpg", text: str = "a dog", *, size: tuple[int, int] | None = None, **target: Any
) -> dict[str, Any]:
    """A record of JSON lines with one object; `size` is (width, height)."""
    entry = {"image": name, "expressions": [text], "objects": [target] if target else []}
    return entry if size is None else entry | {"width": size[0], "height": size[1]}
