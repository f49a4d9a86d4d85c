"""Codecs: bytes to fields and back, with offsets and lengths checked. They decide nothing."""


class Malformed(Exception):  # noqa: N818  named as it is counted
    """What was received cannot be what it claims; `reason` is the counter's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
