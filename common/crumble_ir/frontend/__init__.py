"""From dialect sources to IR."""
