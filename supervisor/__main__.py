"""``python -m supervisor``: the gateway. Exit codes: 0 ended as asked, 1 failed to start, 2 wrong configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import kernel


def main(argv: Sequence[str]) -> int:
    try:
        kernel.check()
    except kernel.UnsupportedPlatform as error:
        print(f"portcullis: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return 1
    # Only now: modules below import what other systems don't have.
    from . import run, specs
    from .settings.load import load
    from .settings.problems import ConfigurationError
    from .settings.show import answer, problems_text

    answered = answer(argv, os.environ, Path.cwd())
    if isinstance(answered, int):
        return answered
    try:
        environ, directory = dict(os.environ), Path.cwd()
        return run.production(lambda: load(argv, environ, directory), answered, specs.production)
    except ConfigurationError as error:
        print(problems_text(error), file=sys.stderr)  # noqa: T201 - it is the answer, not an event
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
