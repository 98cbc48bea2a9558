"""Programs that check the files which other programs read, in an environment of their own that ``ops/test`` makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from requirement import need

ROOT = Path(__file__).parent.parent
_BIN = ROOT / "tests" / ".envs" / "linters" / "bin"

_TO_JSON = "import json, sys, ruamel.yaml; print(json.dumps(ruamel.yaml.YAML(typ='safe', pure=True).load(sys.stdin)))"


def linter(name: str) -> str:
    """The path of a linter; the test is skipped without it."""
    need((_BIN / name).exists(), f"{name} is not installed: tests/.envs/linters is made by ./ops/test")
    return str(_BIN / name)


def yaml(path: Path) -> Any:
    """A YAML file, as JSON values."""
    done = subprocess.run(
        [linter("python"), "-c", _TO_JSON], input=path.read_bytes(), capture_output=True, check=True
    )  # fmt: skip
    return json.loads(done.stdout)
