"""Every exception that secateur raises, and the sentence that suggests the nearest right word.

SecateurError
├── ConfigError (ValueError)         a setting is wrong; lists every problem found
│   ├── NoMatchError                 a selector matches nothing in this model
│   └── GoalError                    so much cannot go from this model
├── UnknownNameError (KeyError)      no criterion, schedule … of that name
├── AxisError (ValueError)           two axes cannot be the same axis
├── TraceError (RuntimeError)        the model's forward failed while it was watched
├── ModelError (TypeError)           what was given is no model, or none that has weights yet
├── CopyError (TypeError)            the model holds something that cannot be copied
├── MaskError (ValueError)           a mask has the wrong shape, dtype or name
├── ScoreError (ValueError)          a weight or score is not finite
├── PlanError (ValueError)           a plan does not fit this model
├── OptimizerError (ValueError)      an optimizer's state does not fit the parameters that were cut
├── FileError (ValueError)           a file is damaged, foreign, or of another model
│   └── WriteError (OSError)         a file cannot be written; the old one is as it was
├── DivergenceError (RuntimeError)   processes that train together decided differently
├── ShrinkError (RuntimeError)       the smaller model fails; the model is as it was before
│   └── VerificationError            it runs, but differs from the masked model
├── RankError (RuntimeError)        another of the processes that go together failed
├── MissingExtraError (ImportError)  an optional dependency is not installed
└── NotHereError (ImportError)       NNI has something of that name, and secateur has not
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SecateurError(Exception):
    """Base of all errors that secateur raises on purpose.

    A message is short, however long the names and values are that it speaks of.
    """

    def __init__(self, *args: object):
        super().__init__(*(shortened(a) if isinstance(a, str) else a for a in args))


class ConfigError(SecateurError, ValueError):
    """One or more settings are wrong.  ``problems`` holds one sentence for each."""

    def __init__(self, *problems: str):
        self.problems = problems
        super().__init__("\n".join(problems))


class NoMatchError(ConfigError):
    """A selector matches no module, parameter or group of the model."""


class GoalError(ConfigError):
    """A goal cannot be met by what a config allows to remove; says what stands in the way."""


class UnknownNameError(SecateurError, KeyError):
    """A name that is not registered."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class AxisError(SecateurError, ValueError):
    """Two axes that were asked to be the same cannot be."""


class RuleError(SecateurError, RuntimeError):
    """The rule of an operation is wrong: its shapes are not those that the model produced."""


class TraceError(SecateurError, RuntimeError):
    """The model's forward failed while its operations were being recorded."""


class ModelError(SecateurError, TypeError):
    """What was given for a model is none, or cannot be looked at as it is."""


class CopyError(SecateurError, TypeError):
    """A model holds something that cannot be copied, so that it can only be cut in place."""


class MaskError(SecateurError, ValueError):
    """A mask does not fit the tensor that it is for."""


class ScoreError(SecateurError, ValueError):
    """A weight or a score is NaN or infinite, so that nothing can be ranked."""


class PlanError(SecateurError, ValueError):
    """A plan names a group, position or attribute that this model does not have."""


class OptimizerError(SecateurError, ValueError):
    """An optimizer's state is older than a cut, or cannot be cut."""


class FileError(SecateurError, ValueError):
    """A file is missing, damaged, of another kind, or does not fit this model."""


class WriteError(FileError, OSError):
    """A file cannot be written: the disk is full, or the folder is read-only.

    What was there before is as it was.
    """


class ShrinkError(SecateurError, RuntimeError):
    """The smaller model could not be made; the model is as it was before.

    ``trial`` names the inputs on which that shows, where it shows on some.
    """

    def __init__(self, message: str, trial: str = ""):
        self.trial = trial
        super().__init__(message)


class VerificationError(ShrinkError):
    """The smaller model runs but differs from the masked model; the model is as it was before."""


class DivergenceError(SecateurError, RuntimeError):
    """Processes that train one model together would prune it differently."""


class RankError(SecateurError, RuntimeError):
    """Another process failed in a call that all make together, with an error of its own kind."""


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, what: str, package: str, extra: str):
        super().__init__(f'{what} needs {package}: pip install "secateur[{extra}]"')


class NotHereError(SecateurError, ImportError):
    """NNI has something of that name, and secateur has not; the message says what to do."""


MOST_WORDS = 1800
"""Letters of a message, whatever the input was: it is read by people, and goes into logs."""


def shortened(text: str, most: int = MOST_WORDS) -> str:
    """Return a text of at most ``most`` letters that can be printed; its middle is left out.

    >>> shortened("abcdefghij" * 3, 11)
    'abcde…fghij'
    """
    half = most // 2
    text = printable(text)
    return text if len(text) <= most else f"{text[:half]}…{text[len(text) - most + half + 1 :]}"


def printable(text: str) -> str:
    r"""Return a text in which half of a pair, of which no encoding knows, is written as it is.

    Python has it for each byte of a file's name that is no text, and JSON may say it.

    >>> printable("a\udc80")
    'a\\udc80'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(word: object, known: Iterable[str], *, limit: int = 1) -> str:
    """Return " Did you mean 'x'?" for the nearest known word, or "" when none is near.

    >>> did_you_mean("tailor", ["taylor", "l1"])
    " Did you mean 'taylor'?"
    >>> did_you_mean("zzz", ["taylor"])
    ''
    """
    words = list(known)
    near = get_close_matches(str(word), words, n=limit, cutoff=0.6)
    if not near:  # a wrong case is the commonest slip, and difflib counts each letter of it
        folded = {w.lower(): w for w in words}
        near = [folded[w] for w in get_close_matches(str(word).lower(), folded, n=limit)]
    return f" Did you mean {' or '.join(repr(w) for w in near)}?" if near else ""
