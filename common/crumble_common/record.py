"""`dataclass` and `field` for message types: the same to use, a fiftieth of the time to make.

The standard decorator compiles six methods for each class, about half a millisecond; a command that
knows sixty message types would spend most of its time on that. Here the methods are shared by all
records. `dataclasses.fields`, `replace`, `asdict` and `match` work with them. Only frozen ones.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import dataclass, field
else:

    class _Missing:
        """No default."""

    class Field:
        """What `dataclasses.Field` says, as far as anybody asks."""

        init = repr = compare = True
        hash = None
        kw_only = False

        def __init__(self, name="", default=_Missing, default_factory=_Missing):
            self.name = name
            self._default = default
            self._factory = default_factory

        @property
        def required(self):
            """There is no default."""
            return self._default is _Missing and self._factory is _Missing

        @property
        def default(self):
            """The default, or dataclasses.MISSING."""
            return _told(self._default)

        @property
        def default_factory(self):
            """What makes the default, or dataclasses.MISSING."""
            return _told(self._factory)

        @property
        def _field_type(self):
            import dataclasses

            return dataclasses._FIELD  # noqa: SLF001  what dataclasses.fields looks for

        def make(self):
            """The default; raises when there is none."""
            return self._factory() if self._factory is not _Missing else self._default

    def _told(value):
        import dataclasses

        return dataclasses.MISSING if value is _Missing else value

    def field(*, default_factory):
        """A field whose default is made anew for each record."""
        return Field(default_factory=default_factory)

    def dataclass(*, frozen):
        """Makes a class with annotations a record."""
        assert frozen
        return _make

    def _make(kind):
        fields = {}
        for name in kind.__annotations__:
            given = kind.__dict__.get(name, _Missing)
            found = given if isinstance(given, Field) else Field(default=given)
            found.name = name
            if isinstance(given, Field):
                delattr(kind, name)
            fields[name] = found
        kind.__dataclass_fields__ = fields
        kind.__match_args__ = tuple(fields)
        for method in (__init__, __repr__, __eq__, __hash__, __setattr__):
            setattr(kind, method.__name__, method)
        kind.__delattr__ = __delattr__
        return kind

    def __init__(self, *values, **named):  # noqa: N807
        fields = self.__dataclass_fields__
        if len(values) > len(fields):
            raise TypeError(f"{type(self).__name__} has {len(fields)} fields")
        made = dict(zip(fields, values, strict=False))
        for name, value in named.items():
            if name not in fields or name in made:
                raise TypeError(f"{type(self).__name__} got {name!r} twice, or has no such field")
            made[name] = value
        for name, item in fields.items():
            if name not in made:
                if item.required:
                    raise TypeError(f"{type(self).__name__} needs {name!r}")
                made[name] = item.make()
        self.__dict__.update(made)

    def __repr__(self):  # noqa: N807
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
        return f"{type(self).__qualname__}({values})"

    def _values(record):
        return [getattr(record, name) for name in record.__dataclass_fields__]

    def __eq__(self, other):  # noqa: N807
        if type(self) is not type(other):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self):  # noqa: N807
        return hash((type(self), *_values(self)))

    def __setattr__(self, *what):  # noqa: N807
        import dataclasses

        raise dataclasses.FrozenInstanceError(
            f"a {type(self).__name__} does not change: {what[0]!r}"
        )

    __delattr__ = __setattr__


__all__ = ["dataclass", "field"]
