"""What a config says, and what it may not say."""

import json

import pytest

from research.config import defaults, differences, flatten, from_json, load, resolve, to_json
from research.durations import Durations, parse_duration
from research.errors import UserError, nearest


def mistakes(*overrides):
    return resolve(defaults(), [text.split("=", 1) for text in overrides])[1]


def test_defaults_have_no_mistake():
    assert mistakes() == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.batchsize=3", "did you mean 'train.batch_size'"),
        ("lrr=1", "config.lrr: unknown key"),
        ("learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("trian.duration=epochs=1", "did you mean 'train.duration'"),
        ("model.fetures=(1,)", "did you mean 'model.features'"),
        ("optimizer.betaa1=0.5", "did you mean 'optimizer.b1'"),
        ("model.name=cn", "did you mean 'cnn'"),
        ("optimizer.name=adm", "did you mean 'adam'"),
        ("optimizer.schedule.name=cosin", "did you mean 'cosine'"),
        ("task.name=clasification", "did you mean 'classification'"),
        ("train.batch_size=many", "must be of type int"),
        ("train.batch_size=1.5", "must be of type int"),
        ("train.ema=high", "must be of type float"),
        ("data.augment.flip=perhaps", "must be of type bool"),
        ("train.ema=1.0", "0 or more and less than 1"),
        ("train.batch_size=0", "must be 1 or more"),
        ("parallel.kind=gpu", "one of mesh, pmap"),
        ("train.duration=5", "must be a duration"),
        ("eval.every=epoch=5", "must be a duration"),
        ("optimizer.learning_rate=nan", "must be of type float"),
        ("data.clean.blank=remove", "one of error, drop, keep"),
        ("data.augment=3", "is a section"),
        ("data=digits", "config.data.name"),
        ("lr=3", "did you mean 'optimizer.learning_rate'"),
        ("train.epochs=3", "did you mean 'train.duration=epochs=3'"),
        ("batch_size=3", "did you mean 'train.batch_size'"),
        ("seed=-1", "from 0 to"),
        ("optimizer.decay_exclude=(1,)", "elements must be of type str"),
        ("optimizer.decay_exclude=3", "elements must be of type str"),
        ("model.features=(4, 'b')", "elements must be of type int"),
        ("task.top_k=0", "must be 1 or more"),
        ("task.label_smoothing=2.0", "0 or more and less than 1"),
    ],
)
def test_each_mistake_is_one_line_with_the_mend(override, says):
    found = mistakes(override)
    assert len(found) == 1 and says in found[0] and "\n" not in found[0], found


def test_all_mistakes_come_at_once():
    found = mistakes(
        "train.batchsize=3", "model.name=cn", "model.features=(1,)", "train.ema=2.0", "seed=one"
    )
    assert len(found) == 4  # the option of a model that does not exist cannot be judged


def test_keys_that_a_config_file_adds_are_found(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "from research.config import defaults\n"
        "def get_config():\n    c = defaults()\n    c.optimiser = 3\n    c.train.epochs = 5\n    return c\n"
    )
    _, found = load(str(path))
    assert [line.split(":")[0] for line in found] == ["config.optimiser", "config.train.epochs"]


def test_a_new_name_takes_away_the_old_options_and_hides_nothing():
    config = defaults()
    config.data.typo = 1
    config.optimizer.momentun = 0.9
    config.optimizer.b1 = 0.8
    config.optimizer.weight_decay = 0.5
    config.model.pool = (1, 2, 3)
    texts = [("data.name", "mnist_5k"), ("optimizer.name", "sgd"), ("model.name", "vit")]
    resolved, found = resolve(config, texts)
    assert [line.split(":")[0] for line in found] == [
        "config.data.typo",
        "config.optimizer.momentun",
    ]
    assert "b1" not in resolved.optimizer and resolved.optimizer.weight_decay == 0.5
    assert resolve(config, [*texts, ("model.pool", "3")])[1]  # but not what the command says


def test_options_that_share_a_name_are_those_of_the_new_thing(root):
    path = f"{root}/configs/fashion_mnist_best.py"  # its cnn has pool=(1, 2, 3); a vit's is a word
    config, found = load(path, [("model.name", "vit")])
    assert found == [] and isinstance(config.model.pool, str)


def test_missing_keys_of_a_stored_config_have_their_defaults():
    whole, _ = resolve(defaults())
    older = from_json(json.dumps({k: v for k, v in whole.to_dict().items() if k != "log"}))
    again, found = resolve(older)
    assert again == whole and found == [] and differences(older, whole) == []
    assert resolve(from_json('{"model": 3, "task": {"name": 4}}'))[1] == [
        "config.task.name: is 4, but must be of type str",
        "config.model: is a section; set one of its keys, such as config.model.name",
    ]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return None", "returned NoneType"),
        ("return {}", "returned dict"),
        ("from ml_collections import ConfigDict\n    return ConfigDict()", "left out checkpoint"),
        ("import sys\n    sys.exit('boo')", "SystemExit: boo"),
        ("raise ValueError('one\\ntwo')", "ValueError: one"),
    ],
)
def test_a_config_file_that_makes_no_config_is_one_line(tmp_path, body, says):
    (tmp_path / "odd.py").write_text(f"def get_config():\n    {body}\n")
    with pytest.raises(UserError, match=says) as caught:
        load(str(tmp_path / "odd.py"))
    assert "\n" not in str(caught.value)


def test_overrides_are_read_as_the_type_of_the_default():
    config, found = resolve(
        defaults(),
        [
            ("train.batch_size", "1_000"),
            ("train.ema", "0"),
            ("data.augment.flip", "true"),
            ("data.path", "12"),
            ("model.features", "[8, 16]"),
            ("optimizer.decay_exclude", "'bias'"),
        ],
    )
    assert found == []
    assert (config.train.batch_size, config.train.ema, config.data.augment.flip) == (
        1000,
        0.0,
        True,
    )
    assert (config.data.path, config.model.features) == ("12", (8, 16))
    assert config.optimizer.decay_exclude == ("bias",) and isinstance(config.train.ema, float)


def test_the_resolved_config_holds_every_option_of_what_it_names():
    config, _ = resolve(defaults(), [("optimizer.name", "sgd"), ("model.name", "mlp")])
    assert {"momentum", "nesterov", "learning_rate"} <= set(config.optimizer)
    assert "b1" not in config.optimizer and "widths" in config.model


def test_json_gives_the_same_config_back():
    config, _ = resolve(defaults(), [("model.features", "(4, 8)")])
    again = from_json(to_json(config))
    assert again == config and again.model.features == (4, 8)
    assert flatten(json.loads(to_json(config))).keys() == flatten(config.to_dict()).keys()
    assert resolve(again)[1] == []


def test_differences_leave_out_what_is_no_other_experiment():
    a, _ = resolve(defaults())
    b, _ = resolve(defaults(), [("parallel.devices", "2"), ("train.batch_size", "64")])
    assert differences(a, b) == ["config.train.batch_size: 128 -> 64"]


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("steps=7", 7),
        ("epochs=1", 8),  # 1000 examples in batches of 128: 7.8
        ("epochs=2", 16),  # 15.6
        ("examples=300_000", 2344),
        ("percent=10", 5),
        ("minutes=0.5", 60),
        ("steps=0", 0),
    ],
)
def test_durations(duration, steps):
    assert Durations(128, 1000, 120.0, 50).to_steps(duration) == steps


def test_durations_that_are_none():
    for text in ("5", "epoch=1", "epochs=", "epochs=-1", "steps=nan", "steps=inf"):
        with pytest.raises(UserError, match="no duration"):
            parse_duration(text)
    with pytest.raises(UserError, match="percent of what"):
        Durations(128, 1000).to_steps("percent=10")


def test_nearest():
    assert nearest("batchsize", ["batch_size", "seed"]) == " (did you mean 'batch_size'?)"
    assert nearest("zzz", ["batch_size"]) == ""


def test_arguments_and_missing_files(tmp_path):
    path = tmp_path / "sized.py"
    path.write_text(
        "from research.config import defaults\n"
        "def get_config(arg='small'):\n"
        "    c = defaults()\n    c.train.batch_size = {'small': 8, 'large': 64}[arg]\n    return c\n"
    )
    assert load(f"{path}")[0].train.batch_size == 8
    assert load(f"{path}:large")[0].train.batch_size == 64
    with pytest.raises(UserError, match="KeyError: 'huge'"):
        load(f"{path}:huge")
    with pytest.raises(UserError, match="did you mean '.*sized.py'"):
        load(str(tmp_path / "size.py"))


def test_a_pretrained_model_asked_for_later_is_not_bent_by_the_files_own_options(tmp_path):
    gpt2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 24, "n_layer": 3, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    config = defaults()
    config.model.name = "transformer"
    config.model.width = 64
    config.model.depth = 5
    given = {"model.name": "pretrained", "pretrained.source": f"hf:{tmp_path}"}
    model = resolve(config, given.items())[0].model
    assert (model.name, model.width, model.depth) == ("transformer", 24, 3)
    # What stands beside the word 'pretrained' was meant for it.
    config.model = {"name": "pretrained", "depth": 2}
    model = resolve(config, [("pretrained.source", f"hf:{tmp_path}")])[0].model
    assert (model.width, model.depth) == (24, 2)
    model = resolve(config, [("pretrained.source", f"hf:{tmp_path}"), ("model.depth", "1")])[
        0
    ].model
    assert (model.width, model.depth) == (24, 1)


def test_a_config_may_say_how_a_pretrained_model_is_computed(tmp_path):
    """What it says besides holds for the model of the folder, and means nothing to another one."""
    described = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "vocab_size": 40,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "silu",
        "intermediate_size": 24, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(described))
    source = ("pretrained.source", f"hf:{tmp_path}")
    config, wrong = load("configs/finetune_lm.py", [source])
    assert not wrong
    assert (config.model.name, config.model.width, config.model.remat) == (
        "transformer",
        16,
        "dots",
    )
    config, wrong = load("configs/finetune_lm.py", [source, ("model.remat", "none")])
    assert not wrong and config.model.remat == "none"
    for name in ("rnn", "transformer"):
        config, wrong = load("configs/finetune_lm.py", [("model.name", name)])
        assert not wrong and config.model.to_dict().get("remat", "none") == "none"
