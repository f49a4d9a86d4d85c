"""What several of Crumble's processes share."""

__version__ = "0.1.0"
