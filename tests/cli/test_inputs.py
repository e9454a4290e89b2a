"""Shapes that are typed: what is too large is said before memory goes."""

from __future__ import annotations

import pytest

from secateur.cli.inputs import read_inputs
from secateur.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("1000000,1000000", "1e\\+12 numbers, and at most 2.68e\\+08 are made"),
        ("ids=100000,100000:7", "1e\\+10 numbers"),
        ("9999999999,9999999999,9999999999", "numbers, and at most"),
        ("1," + "9" * 10_000, "more than 15 digits"),
        ("2,3:" + "9" * 5_000, "more than 15 digits"),
    ],
)
def test_read_inputs_when_a_shape_is_huge_then_it_is_said_in_few_words(word, said):
    with pytest.raises(ConfigError, match=said) as caught:
        read_inputs([word])
    assert len(str(caught.value)) < 2000
