"""Messages on the wire: msgpack maps with an envelope, validated into dataclasses on arrival.

A frame is one msgpack map. Requests: {"t": type, "id": n, "to": target, "d": deadline s, "b": body}.
Events: the same without "id". Replies: {"re": n, "b": body, "t": type} or {"re": n, "error": {...}}.
Frames over MAX_FRAME, unknown types, missing, extra or mistyped fields raise `WireError` and change
nothing. Message types are dataclasses registered with `@message("name")` in `crumble_common.messages`.
"""

from __future__ import annotations

import functools
import sys
import types
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar

import msgpack

from crumble_common.errors import BY_FAULT, CrumbleError, InternalError, UsageError

# A frame carries at most one chunk of a stream (64 KiB) or one image's metadata (a few MiB).
MAX_FRAME = 16 << 20


class Message(Protocol):
    """A registered dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


M = TypeVar("M")
_TYPES: dict[str, type[Any]] = {}
_FRAME_KEYS = {"t", "b", "id", "re", "to", "d", "error"}


class WireError(ValueError):
    """A frame that is not a valid message. `request`: its id where that much could be read."""

    request = 0


def message(name: str) -> Callable[[type[M]], type[M]]:
    """Registers a dataclass as the message type `name`."""

    def register(kind: type[M]) -> type[M]:
        if name in _TYPES:
            raise InternalError(f"Message type {name} is declared twice.")
        _TYPES[name] = kind
        kind.wire_type = name  # type: ignore[attr-defined]  # it is given here
        return kind

    return register


class Envelope:
    """One frame, decoded. `request` is 0 for events; `reply_to` is 0 unless this is a reply."""

    __slots__ = ("body", "deadline", "error", "reply_to", "request", "to")

    def __init__(
        self,
        body: Any = None,
        request: int = 0,
        reply_to: int = 0,
        to: str = "",
        deadline: float = 0.0,
        error: CrumbleError | None = None,
    ) -> None:
        self.body = body
        self.request = request
        self.reply_to = reply_to
        self.to = to
        self.deadline = deadline
        self.error = error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Envelope) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return (self.body, self.request, self.reply_to, self.to, self.deadline)


def pack_body(body: Message) -> dict[str, Any]:
    """A message as the map that goes on the wire."""
    return {name: _plain(getattr(body, name)) for name in body.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def encode(envelope: Envelope) -> bytes:
    """The frame of an envelope; UsageError when a value cannot be sent (not UTF-8, too large)."""
    frame: dict[str, Any] = {}
    if envelope.body is not None:
        frame["t"] = type(envelope.body).wire_type
        frame["b"] = pack_body(envelope.body)
    if envelope.request:
        frame["id"] = envelope.request
    if envelope.reply_to:
        frame["re"] = envelope.reply_to
    if envelope.to:
        frame["to"] = envelope.to
    if envelope.deadline:
        frame["d"] = envelope.deadline
    if envelope.error is not None:
        frame["error"] = pack_error(envelope.error)
    return _pack(frame)


def _pack(frame: dict[str, Any]) -> bytes:
    try:
        data: bytes = msgpack.packb(frame, use_bin_type=True)
    except UnicodeEncodeError as error:
        problem, hint = f"{error.object[:80]!r} is not text in UTF-8.", "Write it in UTF-8."
    except (OverflowError, ValueError):
        problem, hint = "A number is out of all range.", "Give a smaller one."
    else:
        if len(data) <= MAX_FRAME:
            return data
        problem = f"What was given has {len(data)} bytes, over the limit of {MAX_FRAME}."
        hint = "Put it in a file, and give that."
    raise UsageError(problem, code="wire.value", hint=hint)


def decode(data: bytes | memoryview) -> Envelope:
    """Parses and validates one frame; raises WireError."""
    frame = _unpack(data)
    request = _count(frame, "id")
    try:
        return _open_frame(frame, request)
    except WireError as error:
        error.request = request
        raise


def _unpack(data: bytes | memoryview) -> dict[str, Any]:
    if len(data) > MAX_FRAME:
        raise WireError(f"frame of {len(data)} bytes is over the limit of {MAX_FRAME}")
    try:
        frame = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as problem:  # noqa: BLE001  msgpack raises many kinds for bad bytes
        raise WireError(f"not msgpack: {problem}") from None
    if not isinstance(frame, dict) or not frame.keys() <= _FRAME_KEYS:
        raise WireError("not a message frame")
    return frame


def _open_frame(frame: dict[str, Any], request: int) -> Envelope:
    body = None
    if "t" in frame:
        kind = _TYPES.get(frame["t"]) if isinstance(frame["t"], str) else None
        if kind is None:
            raise WireError(f"unknown message type {frame['t']!r}")
        body = validate(kind, frame.get("b"), frame["t"])
    error = unpack_error(frame["error"]) if "error" in frame else None
    reply_to = _count(frame, "re")
    to, deadline = frame.get("to", ""), frame.get("d", 0.0)
    if not isinstance(to, str) or not isinstance(deadline, int | float):
        raise WireError("bad target or deadline")
    return Envelope(body, request, reply_to, to, float(deadline), error)


def _count(frame: dict[str, Any], key: str) -> int:
    value = frame.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(f"bad {key}")
    return value


def pack_error(error: CrumbleError) -> dict[str, Any]:
    """An error as a map: fault, code, message, hint, detail (plain values only)."""
    detail = {key: value for key, value in error.detail.items() if _is_plain(value)}
    return {
        "fault": error.fault,
        "code": error.code,
        "message": _sendable(error.message),
        "hint": _sendable(error.hint),
        "detail": detail,
    }


def _sendable(text: str) -> str:
    """With what is not UTF-8, such as in names of files, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return value == _sendable(value)
    return value is None or isinstance(value, bytes | float) or _fits(value)


def _fits(value: Any) -> bool:
    return isinstance(value, int) and -(1 << 63) <= value < 1 << 63


def unpack_error(value: Any) -> CrumbleError:
    """The error a map describes; raises WireError."""
    if not isinstance(value, dict) or value.get("fault") not in BY_FAULT:
        raise WireError("bad error")
    text = [value.get(key, "") for key in ("message", "code", "hint")]
    detail = value.get("detail", {})
    if not all(isinstance(item, str) for item in text) or not isinstance(detail, dict):
        raise WireError("bad error")
    reserved = ("message", "code", "hint", "self")
    extra = {k: v for k, v in detail.items() if isinstance(k, str) and k not in reserved}
    return BY_FAULT[value["fault"]](text[0], code=text[1], hint=text[2], **extra)


def _required(item: Any) -> bool:
    """Of a record's field, or of another dataclass's."""
    required = getattr(item, "required", None)
    if required is None:
        missing = sys.modules["dataclasses"].MISSING
        required = item.default is missing and item.default_factory is missing
    return bool(required)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def prepare(kind: Any) -> None:
    """Reads the types of a message, and of what is in it, ahead of its first arrival."""
    for hint in _hints(kind).values():
        for inner in (hint, *typing.get_args(hint)):
            if hasattr(inner, "__dataclass_fields__"):
                prepare(inner)


def validate(kind: type[M], value: Any, where: str = "") -> M:
    """Builds dataclass `kind` from a plain map, checking every field's type; raises WireError."""
    where = where or kind.__name__
    if not isinstance(value, dict):
        raise WireError(f"{where} is not a map")
    fields: dict[str, Any] = kind.__dataclass_fields__  # type: ignore[attr-defined]  # every M is one
    if extra := value.keys() - fields.keys():
        raise WireError(f"{where} has unknown fields {sorted(map(str, extra))}")
    made: dict[str, Any] = {}
    hints = _hints(typing.cast(typing.Hashable, kind))
    for name, item in fields.items():
        if name in value:
            made[name] = _check(hints[name], value[name], f"{where}.{name}")
        elif _required(item):
            raise WireError(f"{where}.{name} is missing")
    try:
        return kind(**made)
    except (ValueError, CrumbleError) as error:
        raise WireError(f"{where}: {error}") from None


def _check(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _check_union(args, value, where)
    if origin is typing.Literal:
        return _expect(value in args, value, where)
    if origin in (list, tuple):
        _expect(isinstance(value, list | tuple), value, where)
        return origin(_check(args[0], item, f"{where}[]") for item in value)
    if origin is dict:
        _expect(isinstance(value, dict), value, where)
        return {
            _check(args[0], key, f"{where} key"): _check(args[1], item, f"{where}[{key!r}]")
            for key, item in value.items()
        }
    if hasattr(hint, "__dataclass_fields__"):
        return validate(typing.cast("type[Any]", hint), value, where)
    if hint is float:
        _expect(isinstance(value, int | float) and not isinstance(value, bool), value, where)
        return float(value)
    if hint is int:
        return _expect(isinstance(value, int) and not isinstance(value, bool), value, where)
    if hint is Any:
        return value
    return _expect(isinstance(value, hint), value, where)


def _check_union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return _check(option, value, where)
        except WireError:
            continue
    raise WireError(f"{where} has the wrong type {type(value).__name__}")


def _expect(holds: bool, value: Any, where: str) -> Any:
    if not holds:
        raise WireError(f"{where} has the wrong value {value!r:.60}")
    return value
