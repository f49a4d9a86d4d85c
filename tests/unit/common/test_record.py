"""Records behave as dataclasses do, to everybody who asks."""

import dataclasses
from dataclasses import dataclass as standard
from dataclasses import field as standard_field
from typing import Any

import pytest

from crumble_common.record import dataclass, field


def declare(make: Any, made: Any) -> Any:
    @make(frozen=True)
    class Point:
        """A point."""

        x: int
        y: int = 2
        tags: list[str] = made(default_factory=list)

    return Point


Ours, Theirs = declare(dataclass, field), declare(standard, standard_field)


@pytest.mark.parametrize(
    "arguments", [((1,), {}), ((1, 3, ["a"]), {}), ((), {"x": 5}), ((1,), {"tags": ["b"]})]
)
def test_the_same_values_the_same_text(arguments: Any) -> None:
    values, named = arguments
    ours, theirs = Ours(*values, **named), Theirs(*values, **named)
    assert vars(ours) == vars(theirs)
    assert repr(ours) == repr(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert ours == Ours(*values, **named)
    assert ours != theirs
    assert dataclasses.replace(ours, y=9) == Ours(ours.x, 9, ours.tags)


@pytest.mark.parametrize(
    "arguments", [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 1}), ((1,), {"z": 1})]
)
def test_what_dataclasses_refuse_is_refused(arguments: Any) -> None:
    for kind in (Ours, Theirs):
        with pytest.raises(TypeError):
            kind(*arguments[0], **arguments[1])


def test_they_are_frozen_matched_and_hashed() -> None:
    point = Ours(1)
    for change in (lambda: setattr(point, "x", 2), lambda: delattr(point, "x")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            change()
    match point:
        case Ours(x, y):
            assert (x, y) == (1, 2)
    assert point.tags is not Ours(1).tags
    assert hash(Ours(1, 2, ())) == hash(Ours(1, 2, ()))
    assert [item.name for item in dataclasses.fields(Ours)] == ["x", "y", "tags"]
    assert dataclasses.fields(Ours)[0].default is dataclasses.MISSING
    assert dataclasses.is_dataclass(Ours)
