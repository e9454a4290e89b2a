"""The exceptions that users catch, and the words that they read."""

from __future__ import annotations

import inspect

import pytest

from secateur import errors
from secateur.errors import ConfigError, MissingExtraError, UnknownNameError, did_you_mean

ALL = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == errors.__name__
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_error_when_raised_then_one_except_catches_them_all(kind):
    assert issubclass(kind, errors.SecateurError)


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.NoMatchError, errors.ConfigError),
        (errors.UnknownNameError, KeyError),
        (errors.AxisError, ValueError),
        (errors.TraceError, RuntimeError),
        (errors.MaskError, ValueError),
        (errors.ScoreError, ValueError),
        (errors.PlanError, ValueError),
        (errors.FileError, ValueError),
        (errors.ShrinkError, RuntimeError),
        (errors.VerificationError, errors.ShrinkError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_error_when_caught_then_it_is_also_what_python_would_raise(kind, builtin):
    assert issubclass(kind, builtin)


def test_config_error_when_there_are_several_problems_then_all_are_told():
    error = ConfigError("this is wrong", "that too")
    assert error.problems == ("this is wrong", "that too")
    assert str(error) == "this is wrong\nthat too"


def test_unknown_name_error_when_printed_then_the_message_has_no_quotes_around_it():
    assert str(UnknownNameError("no 'x' here")) == "no 'x' here"


def test_missing_extra_error_when_printed_then_it_says_what_to_type():
    text = str(MissingExtraError("Reading YAML", "PyYAML", "cli"))
    assert text == 'Reading YAML needs PyYAML: pip install "secateur[cli]"'


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("tailor", " Did you mean 'taylor'?"),
        ("TAYLOR", " Did you mean 'taylor'?"),
        ("conv2d", " Did you mean 'Conv2d'?"),
        ("nothing at all", ""),
        ("", ""),
        (None, ""),
        (7, ""),
    ],
)
def test_did_you_mean_when_a_word_is_near_then_it_is_suggested(word, nearest):
    assert did_you_mean(word, ["taylor", "l1", "Conv2d"]) == nearest


def test_did_you_mean_when_nothing_is_known_then_it_is_silent():
    assert did_you_mean("word", []) == ""


def test_did_you_mean_when_more_are_wanted_then_they_are_joined():
    assert did_you_mean("conv", ["conv1", "conv2"], limit=2) == " Did you mean 'conv2' or 'conv1'?"
