"""What print() and format_into() call. In the dialect.

One text is built at a time: the compiler evaluates every expression of an f-string before `begin`.
"""

# mypy: ignore-errors

from crumble_ir import linux
from crumble_ir.dialect import array, i32, i64, ptr, static, struct, u8, u64

LINE = 1024
ZERO, MINUS = b"0"[0], b"-"[0]


@struct
class Text:
    data: ptr[u8]
    size: i64
    length: i64


_text = static(Text)
_line = static(array[u8, LINE])


def begin() -> None:
    """Starts a line; one byte is kept for the newline."""
    into(_line, LINE)


def into(data: ptr[u8], size: i64) -> None:
    """Starts a text in `data`; one byte is kept for the NUL."""
    _text.data = data
    _text.size = size - 1
    _text.length = 0


def put_byte(byte: u8) -> None:
    """One byte, dropped when the text is full."""
    if _text.length < _text.size:
        _text.data[_text.length] = byte
        _text.length += 1


def put(data: ptr[u8], count: i64) -> None:
    """`count` bytes."""
    for index in range(count):
        put_byte(data[index])


def put_string(string: ptr[u8]) -> None:
    """NUL-terminated bytes."""
    index: i64 = 0
    while string[index] != 0:
        put_byte(string[index])
        index += 1


def put_unsigned(value: u64, base: u64, width: i64, pad: u8) -> None:
    """Digits, padded on the left."""
    _put_number(value, base, width, pad, False)


def put_signed(value: i64, base: u64, width: i64, pad: u8) -> None:
    """Digits with a minus sign when negative."""
    if value < 0:
        _put_number(u64(0) - u64(value), base, width, pad, True)
    else:
        _put_number(u64(value), base, width, pad, False)


def _put_number(value: u64, base: u64, width: i64, pad: u8, negative: bool) -> None:
    digits: array[u8, 24]
    count: i64 = 0
    while True:
        digit = u8(value % base)
        digits[count] = digit + (u8(48) if digit < 10 else u8(87))
        count += 1
        value //= base
        if value == 0:
            break
    if negative and pad == ZERO:
        put_byte(MINUS)
    for _ in range(count + i64(negative), width):
        put_byte(pad)
    if negative and pad != ZERO:
        put_byte(MINUS)
    while count > 0:
        count -= 1
        put_byte(digits[count])


def finish() -> i64:
    """Ends with a NUL; gives the length without it."""
    _text.data[_text.length] = 0
    return _text.length


def write_line(fd: i32) -> None:
    """Ends with a newline and writes; what cannot be written is lost."""
    _text.data[_text.length] = 10
    linux.write(fd, _text.data, _text.length + 1)


def failed(message: ptr[u8]) -> None:
    """What a failed assertion or check does, unless the program defines on_failure."""
    begin()
    put_string(message)
    write_line(2)
