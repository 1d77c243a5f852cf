"""Every missing or damaged file of a prepared data set is one line that names it, from reading as from the commands."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.prepare import prepare
from data_pipelines.prepared.sources import Prepared
from instancevg_jax.errors import InputError
from tests.data_pipelines.make import annotation, generalized, picture

FILES = [
    *(
        f"{name}/custom/1.0.0/{file}.json"
        for name in ("pictures", "referring")
        for file in ("dataset_info", "features", "metadata")
    ),
    "pictures/custom/1.0.0/pictures-pictures.array_record-00000-of-00001",
    "referring/custom/1.0.0/referring-val.array_record-00000-of-00001",
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    for i in range(6):
        picture(folder / "images", f"{i}.jpg", 20 * i)
    (folder / "own.json").write_text(json.dumps({"val": [generalized(i, "a dog", annotation()) for i in range(6)]}))
    prepare("custom", [folder / "own.json"], folder / "images", folder / "out")
    return folder / "out"


def _flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes())
    position = random.Random(seed).randrange(len(data))
    data[position] ^= 0x10
    path.write_bytes(data)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "random": lambda path: path.write_bytes(random.Random(0).randbytes(path.stat().st_size)),
    "a folder": _folder,
    "other JSON": lambda path: path.write_text('{"a": 1}'),
    **{f"flipped {seed}": lambda path, seed=seed: _flip(path, seed) for seed in range(5)},
}


def read_all(folder: Path) -> list:
    source = Prepared(folder, "custom", "val")
    loaded = [source.load(i) for i in range(len(source))]
    return [(record, read()) for record, read in loaded]


def failure(folder: Path) -> str:
    """The message of the InputError that reading raises; "" where all is read."""
    try:
        read_all(folder)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_damage_is_one_line(tmp_path: Path, good: Path, file: str, damage: str):
    out = tmp_path / "out"
    shutil.copytree(good, out)
    DAMAGES[damage](out / file)
    message = failure(out)
    if damage.startswith("flipped") and not message:
        assert read_all(out) == read_all(good)  # a flipped bit may be harmless
        return
    assert "\n" not in message
    assert str(out) in message
    assert "prepare" in message
    assert damage.startswith("flipped") or Path(file).name in message


def test_a_damaged_data_set_is_replaced(tmp_path: Path, good: Path):
    folder = good.parent
    shutil.copytree(good, tmp_path / "out")
    (tmp_path / "out" / FILES[2]).unlink()
    with pytest.raises(InputError, match="use --overwrite"):
        prepare("custom", [folder / "own.json"], folder / "images", tmp_path / "out")
    prepare("custom", [folder / "own.json"], folder / "images", tmp_path / "out", overwrite=True)
    assert read_all(tmp_path / "out") == read_all(good)


def test_what_stands_in_the_way_is_named(tmp_path: Path, good: Path):
    folder = good.parent
    (tmp_path / "lock/.preparing/custom.lock").mkdir(parents=True)
    with pytest.raises(InputError, match=r"lock: cannot be written \(Is a directory\)"):
        prepare("custom", [folder / "own.json"], folder / "images", tmp_path / "lock")


def test_records_with_objects_are_counted(tmp_path: Path, good: Path):
    assert Prepared(good, "custom", "val").with_objects == {"official": 6, "strict": 6}
    path = tmp_path / "own.jsonl"
    path.write_text('{"image": "0.jpg", "expressions": "a dog", "objects": [{"box": [1, 2, 30, 30]}]}\n')
    prepare("custom", [path], good.parent / "images", tmp_path / "out")
    assert Prepared(tmp_path / "out", "custom", "train").with_objects == {"official": 0, "strict": 1}


def test_the_messages_of_the_command(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from data_pipelines.prepare import main

    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"image": "0.jpg", "expressions": "a dog", "objects": [{"box": [1, 2, 30, 30]}]}\n'
        '{"image": "0.jpg", "split": "val", "expressions": "a cat", "objects": []}\n'
    )
    for family in ("custom", "grefcoco"):
        command = [family, "--annotations", path, "--images", good.parent / "images", "--data-dir", tmp_path / "out"]
        monkeypatch.setattr("sys.argv", ["prepare", *map(str, command)])
        main()
    out, err = capsys.readouterr()
    assert "train: 1 records, at most 1 objects in one" in out
    assert "1 have an object with only a box or only a mask: eval.protocol=strict uses it" in out
    assert "ownload" not in out + err
    assert "warning: val: no record has an object under eval.protocol=strict" in err
    assert "warning: train: 1 records have an object with only a box" in err
    assert "warning: train: no record has an object under eval.protocol=official" in err
    path.write_text('{"image": "lost.jpg", "expressions": "a dog", "objects": []}\n' * 7)
    with pytest.raises(
        InputError, match=r"lost.jpg: no such file, but the annotations name it \(1 pictures are missing\)"
    ):
        main()
