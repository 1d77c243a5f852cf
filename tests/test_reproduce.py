"""reproduce: the recipe's weights at tiny size under an official name, published figures next to them, and what is missing."""

import dataclasses
import json
from pathlib import Path

import pytest
from flax import nnx

from benchmarks.convert import make_tokenizer
from convert.torch_file.writer import write_checkpoint
from data_pipelines.prepare import prepare
from instancevg_jax import reproduce
from instancevg_jax.answers.predictor import DEMO_CHECKPOINT
from instancevg_jax.checkpoint import save_checkpoint
from instancevg_jax.config import Config, DataConfig, EvalConfig, to_json
from instancevg_jax.errors import InputError
from instancevg_jax.evaluation.metrics import TASKS
from instancevg_jax.evaluation.reproduce import OFFICIAL, load_figures
from tests import oracle
from tests.data_pipelines.make import NULL, annotation, generalized, picture
from tests.parity import models


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """The official file of gRefCOCO as it is downloaded, in a folder of its own, but of tiny size."""
    config = Config(
        model=models.CONFIGS["tiny"],
        data=DataConfig(name="grefcoco", eval_splits=("val", "testA"), max_targets=16),
        eval=EvalConfig(task="gres", protocol="strict", resolution="original"),
    )
    (tmp_path / "tiny.json").write_text(to_json(config))
    official = OFFICIAL["grefcoco"]._replace(config=str(tmp_path / "tiny.json"))
    monkeypatch.setitem(OFFICIAL, "grefcoco", official)
    monkeypatch.setenv("INSTANCEVG_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights" / "gres").mkdir(parents=True)
    write_checkpoint(tmp_path / "weights" / "gres" / official.file, oracle.state("tiny"))
    make_tokenizer(tmp_path / "weights" / "beit3.spm", 256)
    return tmp_path / "weights"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """gRefCOCO's layout with a `val` of three sentences and no `testA`."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number, objects in enumerate([[annotation()], [NULL], [annotation(), annotation(30, 15)]], 1):
        name = f"COCO_train2014_{number:012d}.jpg"
        picture(folder / "images", name, 40 * number)
        records.append(generalized(number, "the square", *objects, file_name=name))
    (folder / "instance.json").write_text(json.dumps({"val": records}))
    prepare("grefcoco", [folder / "instance.json"], folder / "images", folder / "prepared")
    return folder / "prepared"


def test_measured_next_to_published(weights, data, tmp_path, capsys):
    common = {"checkpoint": "grefcoco", "task": "gres", "split": "val", "source": "a table"}
    known = [{**common, "metric": "gIoU", "value": 50.0}, {**common, "metric": "Pr@0.7", "value": 1.5}]
    (tmp_path / "published.json").write_text(json.dumps({"figures": known}))
    reproduce.main(
        [f"--data={data}", f"--weights={weights}", f"--output={tmp_path}", f"--published={tmp_path / 'published.json'}"]
    )
    printed = capsys.readouterr()
    result = json.loads((tmp_path / "reproduce.json").read_text())
    lines = {line["metric"]: line for line in result["results"]}
    assert list(lines) == [*TASKS["gres"].tiles, "Pr@0.7"]
    assert lines["gIoU"]["difference"] == lines["gIoU"]["measured"] - 50
    assert lines["gIoU"]["source"] == "a table"
    assert lines["cIoU"]["published"] is None
    assert f"{lines['gIoU']['measured']:.2f}" in printed.out
    assert "official protocol, compared at the network's 64 x 64 pixels" in result["facts"]["Conditions, grefcoco"]
    missing = "\n".join(result["missing"])
    assert "grefcoco, testA: " in missing
    assert "no split 'testA'" in missing
    for name in OFFICIAL.keys() - {"grefcoco"}:
        assert f"{name}: no {weights / name} and no {OFFICIAL[name].file} in {weights}; download it from" in missing
    assert printed.err.count("missing: ") == 5
    assert printed.err.count("converting ") == 1
    page = (tmp_path / "reproduce.html").read_text()
    for part in ("a table", "50.00", "Missing", "official protocol"):
        assert part in page


def test_nothing_to_evaluate(tmp_path, capsys):
    (tmp_path / OFFICIAL["refzom"].file).write_bytes(b"")
    arguments = [f"--data={tmp_path}", f"--weights={tmp_path}", f"--output={tmp_path / 'out'}", "--only=refzom"]
    with pytest.raises(InputError, match="nothing could be evaluated"):
        reproduce.main(arguments)
    assert f"missing: refzom: {tmp_path / 'InstanceVG-refzom.pth'}: " in capsys.readouterr().err
    (tmp_path / "refzom").symlink_to(DEMO_CHECKPOINT)
    with pytest.raises(InputError, match="nothing could be evaluated"):
        reproduce.main(arguments)
    assert "the configuration is for 'shapes' data; expected 'refzom'" in capsys.readouterr().err


def test_published_figures_are_complete(tmp_path):
    """Those that come with the project have a source, and name metrics and splits that exist."""
    shipped = Path(reproduce.__file__).parents[1] / "configs" / "published.json"
    for figure in load_figures(shipped):
        assert figure.source
        assert 0 <= figure.value <= 100
    assert set(reproduce.NAMES) == set(OFFICIAL)
    (tmp_path / "p.json").write_text(json.dumps({"figures": [{"checkpoint": "grefcoco", "value": 1}]}))
    with pytest.raises(InputError, match=r"figure 0 is .*; expected checkpoint, task, split, metric, value, source"):
        load_figures(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("[]")
    with pytest.raises(InputError, match='expected JSON with a list of "figures"'):
        load_figures(tmp_path / "p.json")
    with pytest.raises(InputError, match="cannot be read"):
        load_figures(tmp_path / "absent.json")


@pytest.mark.slow
def test_the_real_sample(tmp_path):
    """RefCOCO's family on real pictures, under the name of the official checkpoint."""
    root = oracle.data("refcoco_real")
    annotations = root / "annotations" / "mixed-seg" / "instances_nogoogle_withid.json"
    prepare("refcoco", [annotations], root / "images" / "mscoco" / "train2014", tmp_path / "data")
    config = Config(
        model=dataclasses.replace(models.CONFIGS["tiny1"]),
        data=DataConfig(name="refcoco", eval_splits=("val_refcoco_unc",), max_targets=1),
        eval=EvalConfig(task="refcoco"),
    )
    tokenizer = oracle.fixture("f8_tokenizer")["spm_model_bytes"].tobytes()
    save_checkpoint(tmp_path / "refcoco-base", nnx.state(models.model("tiny1")), config, tokenizer, {})
    reproduce.main(
        [f"--data={tmp_path / 'data'}", f"--weights={tmp_path}", f"--output={tmp_path / 'out'}", "--only=refcoco-base"]
    )
    result = json.loads((tmp_path / "out" / "reproduce.json").read_text())
    assert [line["metric"] for line in result["results"]] == ["mIoU", "oIoU", "DetACC@0.5"]
    assert all(line["measured"] is not None for line in result["results"])
