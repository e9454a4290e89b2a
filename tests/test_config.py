"""Config and Target: every setting, every sentence, and nothing but ConfigError."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.config import Config, Target
from secateur.errors import ConfigError, MissingExtraError
from secateur.scoring.granularity import NM, Channel, Element, Tile
from secateur.settings import granularity_from, read_settings


def problems_of(**kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config(**kwargs)
    return list(caught.value.problems)


def test_config_without_settings_has_the_documented_defaults() -> None:
    config = Config()
    assert (config.criterion, config.granularity, config.scope) == ("l2", "group", "local")
    assert (config.normalize, config.parameters) == ("mean", ("weight",))
    assert (config.schedule, config.steps, config.every, config.of) == (
        "constant",
        1,
        1,
        "channels",
    )
    assert (config.round_to, config.uniform, config.inexact, config.seed) == (1, False, False, 0)
    assert config.targets == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", ["layer1.*"]),
        ("types", ("Conv2d",)),
        ("exclude", ["*.head"]),
        ("exclude_types", ["Linear"]),
        ("criterion", "l1"),
        ("sparsity", 0.5),
        ("sparsity", 1),
        ("threshold", 2),
        ("min_sparsity", 0.1),
        ("max_sparsity", 0.9),
        ("granularity", "element"),
        ("granularity", "2:4"),
        ("granularity", [1, -1]),
        ("scope", "global"),
        ("normalize", "gaussian"),
        ("schedule", "cubic"),
        ("steps", 10),
        ("every", 100),
        ("of", "macs"),
        ("round_to", 8),
        ("uniform", True),
        ("inexact", True),
        ("seed", 7),
        ("targets", [{"names": ["a"]}]),
    ],
)
def test_config_when_a_setting_is_given_keeps_it(key: str, value: Any) -> None:
    stored = getattr(Config(**{key: value}), key)
    if key == "targets":
        assert stored == (Target(names=["a"]),)
    else:
        assert stored == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sparsity": 30}, "sparsity: must be less than or equal to 1, got 30. Did you mean 0.3?"),
        ({"sparsity": -0.1}, "sparsity: must be greater than or equal to 0, got -0.1."),
        ({"sparsity": "0.5"}, "sparsity: must be a valid number, got '0.5'."),
        ({"sparsity": True}, "sparsity: must be a valid number, got True."),
        ({"threshold": float("nan")}, "threshold: must be a finite number, got nan."),
        ({"names": "conv1"}, "names: must be a list: write ['conv1']."),
        ({"names": [3]}, "names.0: must be a valid string, got 3."),
        ({"sparcity": 0.5}, "unknown key 'sparcity'. Did you mean 'sparsity'?"),
        ({"every": 0}, "every: must be greater than or equal to 1, got 0."),
        ({"steps": 2.0}, "steps: must be a valid integer, got 2.0."),
        ({"uniform": 1}, "uniform: must be a valid boolean, got 1."),
        (
            {"scope": "globl"},
            "scope: must be 'local' or 'global', got 'globl'. Did you mean 'global'?",
        ),
        ({"granularity": "4:2"}, "granularity: 4:2 is no sparsity pattern: give 0 < n < m"),
        ({"targets": {"a": 1}}, "targets: must be a list of targets, got {'a': 1}."),
        ({"targets": [3]}, "targets[0]: must be a dict of settings, got 3."),
        ({"targets": [Config()]}, "targets[0]: must be a Target, not a Config."),
        ({"targets": [{1: 2}]}, "targets[0]: unknown key '1'."),
        ({"self": 1}, "unknown key 'self'."),
        (
            {"targets": [{}, {"sparsity": 2}]},
            "targets[1]: sparsity: must be less than or equal to 1, got 2. Did you mean 0.02?",
        ),
        (
            {"sparsity": 0.5, "threshold": 1.0},
            "'sparsity' and 'threshold' are both given; keep one.",
        ),
        (
            {"min_sparsity": 0.5, "max_sparsity": 0.2},
            "'min_sparsity' (0.5) is greater than 'max_sparsity' (0.2).",
        ),
        (
            {"min_sparsity": 0.5, "targets": [{"max_sparsity": 0.2}]},
            "targets[0]: 'min_sparsity' (0.5) is greater than 'max_sparsity' (0.2).",
        ),
        (
            {"granularity": "2:4", "sparsity": 0.7},
            "granularity '2:4' removes 0.5 exactly; leave out 'sparsity'.",
        ),
        (
            {"granularity": "2:4", "scope": "global"},
            "granularity '2:4' cannot have a global scope.",
        ),
        (
            {"scope": "global", "allocate": "depth"},
            "scope='global' ranks positions of all groups together, and allocate='depth' gives "
            "each group a share of its own; keep one.",
        ),
        (
            {"allocate": "error", "targets": [{}, {"scope": "global"}]},
            "scope='global' ranks positions of all groups together, and allocate='error' gives "
            "each group a share of its own; keep one.",
        ),
        (
            {"parameters": ["bias"]},
            "'parameters' are not for granularity 'group', which takes them all.",
        ),
    ],
)
def test_config_when_a_setting_is_wrong_says_so_in_one_sentence(
    wrong: dict[str, Any], sentence: str
) -> None:
    assert problems_of(**wrong) == [sentence]


@pytest.mark.parametrize(
    ("key", "near", "right"),
    [
        ("criterion", "fpmg", "fpgm"),
        ("schedule", "liner", "linear"),
        ("granularity", "out_chanel", "out_channel"),
        ("of", "mac", "macs"),
        ("normalize", "gausian", "gaussian"),
    ],
)
def test_config_when_a_name_is_misspelt_suggests_the_near_one(
    key: str, near: str, right: str
) -> None:
    (problem,) = problems_of(**{key: near})
    assert problem.startswith(f"{key}: ")
    assert f"Did you mean {right!r}?" in problem


def test_config_when_many_settings_are_wrong_tells_them_all_at_once() -> None:
    problems = problems_of(
        sparsity=30,
        stepz=1,
        criterion="nope",
        min_sparsity=0.5,
        max_sparsity=0.2,
        targets=[{"zzz": 1}, {"sparsity": 0.1, "threshold": 1}],
    )
    assert len(problems) == 6
    assert "targets[0]: unknown key 'zzz'." in problems
    assert "targets[1]: 'sparsity' and 'threshold' are both given; keep one." in problems


def test_resolved_targets_when_there_are_none_are_the_config_itself() -> None:
    (target,) = Config(sparsity=0.5, names=["a"], steps=3).resolved_targets()
    assert target == Target(sparsity=0.5, names=["a"])
    assert type(target) is Target


def test_resolved_targets_inherit_what_they_leave_unset() -> None:
    config = Config(
        sparsity=0.5,
        criterion="l1",
        exclude=["head"],
        targets=[{"names": ["a"]}, {"names": ["b"], "criterion": "l2", "sparsity": 0.2}],
    )
    a, b = config.resolved_targets()
    assert (a.sparsity, a.criterion, a.exclude) == (0.5, "l1", ("head",))
    assert (b.sparsity, b.criterion, b.exclude) == (0.2, "l2", ("head",))


@pytest.mark.parametrize(
    ("own", "sparsity", "threshold"),
    [
        ({"threshold": 0.1}, None, 0.1),
        ({"granularity": "1:4"}, 0.25, None),
        ({"sparsity": None}, None, None),
        ({}, 0.7, None),
    ],
)
def test_resolved_targets_with_a_goal_of_their_own_do_not_inherit_another(
    own: dict[str, Any], sparsity: float | None, threshold: float | None
) -> None:
    (target,) = Config(sparsity=0.7, scope="global", targets=[own]).resolved_targets()
    assert (target.sparsity, target.threshold) == (sparsity, threshold)


def test_config_when_changed_refuses_and_replace_checks_again() -> None:
    config = Config(sparsity=0.5)
    with pytest.raises(AttributeError, match=r"frozen; use .replace\(sparsity=...\)"):
        config.sparsity = 0.2  # type: ignore[misc]
    assert config.replace(sparsity=0.2) == Config(sparsity=0.2)
    with pytest.raises(ConfigError, match="must be less than"):
        config.replace(sparsity=2)


def test_config_copied_pickled_and_hashed_is_the_same() -> None:
    config = Config(sparsity=0.5, targets=[Target(names=["a"])])
    twins = (copy.deepcopy(config), pickle.loads(pickle.dumps(config)))
    assert all(twin == config and hash(twin) == hash(config) for twin in twins)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".json", '{"sparsity": 0.5, "targets": [{"names": ["a"]}]}'),
        (".yaml", "sparsity: 0.5\ntargets:\n  - names: [a]\n"),
        (".yml", "sparsity: 0.5\ntargets: [{names: [a]}]\n"),
        (".toml", 'sparsity = 0.5\n[[targets]]\nnames = ["a"]\n'),
    ],
)
def test_load_reads_every_file_type(tmp_path: Any, suffix: str, text: str) -> None:
    path = tmp_path / f"prune{suffix}"
    path.write_text(text)
    assert Config.load(path) == Config(sparsity=0.5, targets=[Target(names=["a"])])


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.json", "{", "a.json: not readable as json: Expecting"),
        ("a.json", "[" * 100_000, "a.json: not readable as json: "),
        ("a.yaml", "a: [", "a.yaml: not readable as yaml: "),
        ("a.toml", "a = ", "a.toml: not readable as toml: "),
        ("a.ini", "", "a.ini: unknown file type; use one of .json, .toml, .yaml, .yml."),
        ("a.json", "[1]", "a.json: must be a dict of settings, got [1]."),
        ("a.json", '{"sparsity": NaN}', "a.json: sparsity: must be a finite number, got nan."),
    ],
)
def test_load_when_a_file_is_wrong_names_it(
    tmp_path: Any, name: str, text: str, sentence: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.load(path)
    assert f"/{sentence}" in str(caught.value)


def test_load_when_the_file_is_no_text_says_so(tmp_path: Any) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not readable as json"):
        Config.load(tmp_path / "a.json")


def test_yaml_when_pyyaml_is_absent_says_what_to_install(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_yaml(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    (tmp_path / "a.yaml").write_text("a: 1")
    with pytest.raises(MissingExtraError, match=r'pip install "secateur\[cli\]"'):
        read_settings(tmp_path / "a.yaml")


def test_save_then_load_inherits_the_same(tmp_path: Any) -> None:
    config = Config(sparsity=0.5, criterion="l1", targets=[{"names": ["a"]}], granularity=[1, -1])
    config.save(tmp_path / "c.json")
    loaded = Config.load(tmp_path / "c.json")
    assert loaded == config
    assert loaded.resolved_targets() == config.resolved_targets()
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_save_when_writing_fails_leaves_the_file_as_it_was(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    Config(sparsity=0.5).save(path)

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        Config(sparsity=0.1).save(path)
    assert Config.load(path).sparsity == 0.5
    assert [each.name for each in tmp_path.iterdir()] == ["c.json"]


def test_save_under_another_suffix_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="saved as JSON"):
        Config().save(tmp_path / "c.yaml")


def test_json_schema_for_editors_names_every_setting() -> None:
    schema = Config.model_json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("value", "transposed", "meant"),
    [
        ("group", False, None),
        ("element", False, Element()),
        ("out_channel", False, Channel(0)),
        ("out_channel", True, Channel(1)),
        ("in_channel", False, Channel(1)),
        ("in_channel", True, Channel(0)),
        ("2:4", False, NM(2, 4)),
        ([4, -1], False, Tile((4, -1))),
    ],
)
def test_granularity_from_translates_every_form(value: Any, transposed: bool, meant: Any) -> None:
    assert granularity_from(value, transposed=transposed) == meant


@pytest.mark.parametrize("value", [None, 3, "", "2:", "0:4", "4:4", [], [0], [True], [1.0], {}])
def test_granularity_from_when_it_is_none_raises(value: Any) -> None:
    with pytest.raises(ConfigError):
        granularity_from(value)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["l1", "local", "linear", "element", "2:4", "group", 0.5, 0.1, 1, 10**400])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner), max_leaves=4
)
target_keys = st.sampled_from([*Target.model_fields, "garbage", ""]) | st.integers()
targets = st.dictionaries(target_keys, values, max_size=4)
configs = st.dictionaries(
    st.sampled_from([*Config.model_fields, "garbage", "self", "__class__"]) | st.integers(),
    values | st.lists(targets | values, max_size=3),
    max_size=5,
)


@given(configs)
@settings(max_examples=300)
def test_from_dict_of_anything_is_a_config_or_a_config_error(raw: dict[Any, Any]) -> None:
    try:
        config = Config.from_dict(raw)
    except ConfigError:
        return
    assert all(type(target) is Target for target in config.resolved_targets())
    text = json.dumps(config.model_dump(mode="json", exclude_unset=True))
    assert Config.from_dict(json.loads(text)) == config


@given(values)
@settings(max_examples=50)
def test_from_dict_of_no_dict_is_a_config_error(raw: Any) -> None:
    with pytest.raises(ConfigError):
        Config.from_dict(raw)


@pytest.mark.parametrize(
    "setting",
    [
        "allocate='owl'",
        "criterion='reap'",
        pytest.param("schedule='cubic'", marks=pytest.mark.slow),
        pytest.param("what=['heads']", marks=pytest.mark.slow),
    ],
)
def test_config_when_it_is_the_first_thing_asked_of_the_package_then_names_are_known(
    setting: str,
) -> None:
    code = f"import secateur as sc; sc.Config(sparsity=0.5, {setting})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
