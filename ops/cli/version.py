"""The version of the distribution that is installed."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    return metadata.version("portcullis")
