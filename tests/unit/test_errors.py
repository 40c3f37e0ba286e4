"""Errors: one base, a class that says what to do, a message with field, value and remedy."""

import inspect
import pickle

import pytest
from kvcommons_core import errors, limits

CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.KvCommonsError)
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_says_what_to_do(kind: type[errors.KvCommonsError]) -> None:
    """Whoever catches KvCommonsError catches all, and each class says in its docstring what its catcher does."""
    assert kind.__name__.endswith("Error")
    assert kind.__doc__
    assert len(kind.__doc__) > 30


def test_configuration_errors_carry_their_parts() -> None:
    """Field, value and remedy stand in the message and as attributes."""
    error = errors.ConfigurationError("node.port", 0, "give a free port")
    assert str(error) == "node.port: 0: give a free port"
    assert (error.field, error.value, error.remedy) == ("node.port", 0, "give a free port")
    assert isinstance(error, ValueError)


def test_long_values_are_cut() -> None:
    """A megabyte in the wrong place does not fill the log."""
    assert len(str(errors.ConfigurationError("x", "y" * 10**6, "z"))) < 200


def test_limit_errors_tell_the_bound() -> None:
    """How much it was and how much it may be."""
    error = errors.LimitExceededError("body bytes", 11, 10, "send less")
    assert "11 is over the limit of 10" in str(error)


def test_a_missing_native_part_names_its_remedy() -> None:
    """A pure wheel in the place of a binary one says how to mend it, and is an ImportError to those who look for one."""
    error = errors.NativeMissingError("the node")
    assert isinstance(error, ImportError)
    assert "make build" in str(error)


def test_a_reason_can_be_counted() -> None:
    """A request that can't be cached has a reason of few words for a metric's label, and a detail for the log."""
    error = errors.NotCacheableError("prompt_embeds", "embeddings have no token ids")
    assert error.reason == "prompt_embeds"
    assert "embeddings" in str(error)


def test_plain_errors_survive_a_process_boundary() -> None:
    """Errors with one message can be handed from a worker process."""
    assert str(pickle.loads(pickle.dumps(errors.IndexUnavailableError("gone")))) == "gone"


def test_limits_are_positive_and_named_with_their_unit() -> None:
    """Every bound is a number over zero, and its name says of what."""
    units = ("BYTES", "TOKENS", "SECONDS", "MAX", "MIN", "DEFAULT")
    for name, value in vars(limits).items():
        if name.isupper():
            assert isinstance(value, int | float), name
            assert value > 0, name
            assert any(unit in name.split("_") for unit in units), name
