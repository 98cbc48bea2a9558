"""Where a client command takes its token from."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from .failure import UsageError


def add_token_options(parser: argparse.ArgumentParser, variable: str) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--token", metavar="TOKEN", help="bearer token; visible in the process list, so prefer a file")
    group.add_argument("--token-file", metavar="PATH", help="file that holds the token")
    parser.set_defaults(token_variable=variable)
    parser.epilog = f"Without --token and --token-file the token comes from ${variable} or the file ${variable}_FILE."


def find_token(options: argparse.Namespace, environment: Mapping[str, str]) -> str:
    """The token, or an empty string where none is configured. Raises UsageError, without naming the token.

    Where the variable lists several tokens, for their rotation, the first one is presented.
    """
    variable: str = options.token_variable
    if options.token is not None:
        token: str = options.token.strip()
        source = "--token"
    elif options.token_file is not None:
        token, source = _read(options.token_file, "--token-file"), "--token-file"
    elif environment.get(variable):
        token, source = environment[variable], f"${variable}"
    elif environment.get(f"{variable}_FILE"):
        token, source = _read(environment[f"{variable}_FILE"], f"${variable}_FILE"), f"${variable}_FILE"
    else:
        return ""
    token = token.split(",")[0].strip()
    if not token:
        raise UsageError(f"{source}: the token is empty")
    # Anything else could not travel in an Authorization header (RFC 6750 §2.1, RFC 9110 §5.5).
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(f"{source}: the token holds a character that no HTTP header can carry")
    return token


def _read(path: str, source: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{source}: {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
