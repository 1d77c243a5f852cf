"""What `--config` accepts, the overrides, and `--help`."""

import pytest

from instancevg_jax import config as configs
from instancevg_jax.config import Config
from instancevg_jax.errors import InputError
from instancevg_jax.runtime import command_line


def parse(*argv: str) -> Config:
    parser = command_line.parser_of("train", "Do something.")
    parser.add_argument("--steps", type=int, help="number of steps")
    args, rest = command_line.parse(parser, argv)
    return command_line.override(command_line.load_config(args.config), rest)


@pytest.mark.parametrize(
    ("spec", "family", "width"),
    [
        ("configs/refcoco.py:large", "refcoco", 1024),
        ("refcoco:large", "refcoco", 1024),
        ("grefcoco", "grefcoco", 768),
        ("shapes:long", "shapes", 128),
    ],
)
def test_a_config_is_a_file_or_a_name(spec, family, width):
    for argv in ([f"--config={spec}"], ["--config", spec]):
        config = parse(*argv, "--config.train.seed=7", "--config.optim.learning_rate", "3e-4")
        assert (config.data.name, config.model.width, config.train.seed) == (family, width, 7)
        assert config.optim.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.frozen", "('backbone.text_embed',)", ("backbone.text_embed",)),
        ("optim.frozen", "'backbone'", ("backbone",)),
        ("optim.decay_epochs", "4", (4,)),
        ("optim.decay_epochs", "4,7", (4, 7)),
        ("optim.decay_epochs", "()", ()),
        ("data.eval_splits", "val,testA", ("val", "testA")),
        ("loss.no_target_class_weights", "1,2", (1.0, 2.0)),
        ("optim.amsgrad", "False", False),
        ("optim.amsgrad", "true", True),
        ("train.ema_decay", "0", 0.0),
        ("data.data_dir", "", ""),
        ("data.data_dir", "7", "7"),
    ],
)
def test_values_are_of_the_type_of_their_field(name, text, value):
    assert configs.fields(parse("--config=shapes", f"--config.{name}={text}"))[name][1] == value


def test_a_config_json_of_a_run_is_a_config(tmp_path):
    expected = parse("--config=shapes", "--config.train.seed=7")
    (tmp_path / "config.json").write_text(configs.to_json(expected))
    assert parse(f"--config={tmp_path / 'config.json'}") == expected
    assert parse(f"--config={tmp_path / 'config.json'}", "--config.data.eval_splits=('a', 'b')").data.eval_splits == (
        "a",
        "b",
    )


def test_an_older_config_json_keeps_its_meaning(tmp_path):
    """One from before validation had splits and epochs of its own."""
    text = configs.to_json(Config(train=configs.TrainConfig(eval_every=500, checkpoint_every=100)))
    for name in ("validation_splits", "eval_every_epochs", "checkpoint_every_epochs", "batch_size_per_device"):
        text = "\n".join(line for line in text.splitlines() if f'"{name}"' not in line)
    (tmp_path / "config.json").write_text(text)
    config = parse(f"--config={tmp_path / 'config.json'}")
    assert (config.train.eval_every, config.train.checkpoint_every, config.data.eval_splits) == (500, 100, ("val",))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "--config is required; see --help"),
        (["--config"], "argument --config: expected one argument"),
        (["--config=configs/nothing.py"], "--config configs/nothing.py: no such file; expected .* grefcoco, refcoco"),
        (["--config=grefcoc"], "--config grefcoc: no such file"),
        (["--config=absent.json"], "absent.json: no such file"),
        (
            ["--config=absent.json:large"],
            "--config absent.json:large: a config.json has no variants; expected absent.json",
        ),
        (["--config=configs"], "--config configs: is a folder; expected a config file"),
        (["--config=shapes", "--config.train.seed=4294967296"], "train.seed is 4294967296; expected 0 to 4294967295"),
        (
            ["--config=shapes", "--config.train.num_epochs=9999999999999999999999"],
            "train.num_epochs is 9999999999999999999999; expected 0",
        ),
        (["--config=refcoco:huge"], "no variant 'huge'; expected none or one of base, large, unc"),
        (
            ["--config=shapes", "--config.train.num_step=3"],
            "train.num_step: no such field; did you mean train.num_steps?",
        ),
        (["--config=shapes", "--config.model.seed=3"], "model.seed: no such field; did you mean train.seed?"),
        (["--config=shapes", "--config.zzz", "3"], "zzz: no such field; see instancevg train --help for all fields"),
        (["--config=shapes", "--config.train.seed=many"], "train.seed is 'many'; expected int"),
        (["--config=shapes", "--config.train.seed=1.5"], "train.seed is '1.5'; expected int"),
        (["--config=shapes", "--config.train.seed"], "--config.train.seed has no value"),
        (["--config=shapes", "--config.optim.amsgrad=maybe"], "optim.amsgrad is 'maybe'; expected bool"),
        (["--config=shapes", "--config.optim.decay_epochs=4,x"], r"optim.decay_epochs\[0\] is '4'; expected int"),
        (["--config=shapes", "--config.optim.eps=nan"], "optim.eps is nan; expected a finite number"),
        (["--config=shapes", "--steps=many"], "argument --steps: invalid int value: 'many'"),
        (["--config=shapes", "--config.train.seed=-1"], "train.seed is -1; expected 0 to 4294967295"),
        (["--config=shapes", "--stesp=3"], "unknown option --stesp; did you mean --steps?"),
        (["--config=shapes", "more"], "unexpected argument 'more'"),
    ],
)
def test_bad_command_lines_are_one_line(argv, says):
    with pytest.raises(InputError, match=says) as caught:
        parse(*argv)
    assert "\n" not in str(caught.value)


def test_help_lists_every_field_with_its_text_and_value(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--config=refcoco:large", "--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    words = " ".join(printed.split())
    for name, (field, _) in configs.fields(Config()).items():
        assert f"--config.{name}=" in printed
        assert field.metadata["text"] in words
    assert "--config.model.width=1024\n" in printed  # of the config that is given
    assert "--steps STEPS" in printed
    assert max(map(len, printed.splitlines())) <= 220


def test_a_config_file_may_return_a_config_dict(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config(size='64'):\n"
        "    sides = {'image_height': int(size), 'image_width': int(size)}\n"
        "    return ConfigDict({'model': sides, 'data': {'eval_splits': ('val', 'b')}})\n"
    )
    config = command_line.load_config(f"{path}:96")
    assert (config.model.image_height, config.data.eval_splits) == (96, ("val", "b"))
    path.write_text(
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'model': {'withd': 3}})\n"
    )
    with pytest.raises(InputError, match=r"model.withd: no such field; did you mean model.width\?"):
        command_line.load_config(str(path))
    path.write_text("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'width': 3})\n")
    with pytest.raises(InputError, match="or a ConfigDict of sections such as model"):
        command_line.load_config(str(path))
