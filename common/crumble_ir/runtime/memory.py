"""Moving and comparing bytes. In the dialect."""

# mypy: ignore-errors
from crumble_ir.dialect import i64, ptr, u8, u64


def copy(target: ptr[u8], source: ptr[u8], count: i64) -> None:
    """Copies `count` bytes; where the areas overlap, `target` must be below."""
    done: i64 = 0
    while done + 8 <= count:
        ptr[u64](target + done)[0] = ptr[u64](source + done)[0]
        done += 8
    while done < count:
        target[done] = source[done]
        done += 1


def clear(target: ptr[u8], count: i64) -> None:
    """Zeroes `count` bytes."""
    for index in range(count):
        target[index] = 0


def length(string: ptr[u8]) -> i64:
    """Bytes before the NUL."""
    count: i64 = 0
    while string[count] != 0:
        count += 1
    return count


def same(one: ptr[u8], other: ptr[u8]) -> bool:
    """Whether two NUL-terminated strings are equal."""
    index: i64 = 0
    while one[index] == other[index]:
        if one[index] == 0:
            return True
        index += 1
    return False


def starts_with(string: ptr[u8], prefix: ptr[u8]) -> bool:
    """Whether a NUL-terminated string begins with another."""
    index: i64 = 0
    while prefix[index] != 0:
        if string[index] != prefix[index]:
            return False
        index += 1
    return True
