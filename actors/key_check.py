"""``python -m actors.key_check ALGORITHM …``: whether stdin holds a key set that auth would use.

For the check of the settings, which imports nothing of the actors. Exit code 0: it does; 1: stdout says why not.
"""

from __future__ import annotations

import sys

from .policy.jwks import MAX_SET, UnusableKeys, parse_jwks


def main() -> int:
    try:
        parse_jwks(sys.stdin.buffer.read(MAX_SET + 1), sys.argv[1:])
    except UnusableKeys as unusable:
        sys.stdout.write(f"{unusable}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
