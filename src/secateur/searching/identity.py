"""What a study was made for, so that trials of two searches never mix."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from optuna.trial import TrialState
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.runtime.sameness import check_same

if TYPE_CHECKING:
    from optuna.study import Study

SCHEMA = 1
GIVEN = "given"
KEY = "secateur"
"""The user attribute of a study that says what it was made for."""


def weights_digest(model: nn.Module) -> str:
    """Return a digest of all parameters and buffers, which no other weights have."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous().flatten()
            found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def claim(
    study: Study, facts: Mapping[str, Any], given: Mapping[str, Any], same: Sequence[str] = ()
) -> None:
    """Say what a new study is for, or hold an old one against it.

    Args:
        facts: what is searched.
        given: name → facts of the data and functions that it is searched with.  Those of a study
            that has no value yet may change: what failed may be repaired.
        same: names of those that count as the same.

    Raises:
        ConfigError: it is of another search; says what differs.
    """
    ours = json.loads(json.dumps({"schema": SCHEMA, **facts, GIVEN: given}, default=_plain))
    if KEY not in study.user_attrs:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"the study {study.study_name!r} holds trials that are not of secateur; "
                "give another name"
            )
        study.set_user_attr(KEY, ours)
    theirs = study.user_attrs[KEY]
    if not isinstance(theirs, dict):
        raise ConfigError(f"the study {study.study_name!r} does not say what it is for")
    without = ({k: v for k, v in each.items() if k != GIVEN} for each in (theirs, ours))
    different = list(_differences(*without))
    if different:
        raise ConfigError(
            f"the study {study.study_name!r} is of another search; give another name or storage",
            *different,
        )
    before = theirs.get(GIVEN, {})
    if any(t.state != TrialState.FAIL for t in study.get_trials(deepcopy=False)):
        what, advice = f"the study {study.study_name!r}", "give another name or storage"
        check_same(what, before, ours[GIVEN], same, advice)
    if before != ours[GIVEN]:
        study.set_user_attr(KEY, {**theirs, GIVEN: ours[GIVEN]})


def _plain(value: Any) -> Any:
    """Return the number that a numpy scalar is; nothing else can be compared with a study's."""
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        return value.item()
    raise ConfigError(
        f"sampler_options: {value!r} is no plain number or text, which a study can be told from "
        "others by; give sampler=…, an Optuna sampler that is made with it"
    )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each fact that is another, down to single settings."""
    for name in dict.fromkeys([*theirs, *ours]):
        there, here = theirs.get(name), ours.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from (f"{name}.{each}" for each in _differences(there, here))
        elif there != here:
            yield f"{name}: {there!r} there, {here!r} here"
