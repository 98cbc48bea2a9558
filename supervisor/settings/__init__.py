"""Settings: where they come from, what they may be, and everything that is wrong with them, at once."""

from .load import Loaded, load, load_some
from .problems import ConfigurationError, Problem
from .show import answer
from .tokens import generate_tokens, with_admin_token

__all__ = [
    "ConfigurationError",
    "Loaded",
    "Problem",
    "answer",
    "generate_tokens",
    "load",
    "load_some",
    "with_admin_token",
]
