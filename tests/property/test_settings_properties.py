"""What holds of settings whatever is written into them."""

from __future__ import annotations

import base64
import string
import tempfile
import uuid
from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from ipc.settings import Settings
from supervisor.settings import ConfigurationError, Problem, dotenv, load
from supervisor.settings.secrets import weakness
from supervisor.settings.variables import VARIABLES, edit_distance

NAMES = st.sampled_from([variable.name for variable in VARIABLES])
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)
VALUES = TEXTS | st.sampled_from(["true", "0", "1", "*", "localhost", "::", "a=1", "production", "HS512", "-", "~x/y"])


@given(st.dictionaries(NAMES, VALUES, max_size=8), st.lists(TEXTS | NAMES, max_size=4))
def test_any_environment_and_flags_give_settings_or_a_configuration_error(
    environ: dict[str, str], argv: list[str]
) -> None:
    """No other exception, and what is accepted can be sent to a worker."""
    with tempfile.TemporaryDirectory() as directory:
        problems: tuple[Problem, ...] | None = None
        settings: Settings | None = None
        try:
            settings = load(argv, environ, directory).settings
        except ConfigurationError as error:
            problems = error.problems
    if settings is not None:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(settings), type=Settings) == settings
    else:
        assert problems
        assert all(problem.variable and problem.what for problem in problems)


@given(st.text() | st.text(string.ascii_letters + "=\"'# \\\n\r$-_"))
def test_any_dotenv_text_is_read_or_its_lines_are_named(text: str) -> None:
    """Each line is an entry, a broken line, or nothing; none is both."""
    entries, broken = dotenv.parse(text)
    lines = [entry.line for entry in entries] + [line.line for line in broken]
    assert len(set(lines)) == len(lines)
    assert all(entry.name.replace("_", "").replace(".", "").isalnum() for entry in entries)


@given(TEXTS.map(lambda text: text.replace("\r", "").replace("\n", "")))
def test_a_quoted_value_is_what_was_quoted(value: str) -> None:
    """Double quotes with escapes hold any text of one line."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    [entry], broken = dotenv.parse(f'X="{quoted}" # comment')
    assert (entry.value, broken) == (value, [])


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_what_generators_print_is_strong_unless_its_bytes_are_not_random(key: bytes, half: bytes) -> None:
    """Hypothesis likes zeros, which are no random output; everything with 12 different bytes or more passes."""
    if len(set(key)) >= 24:
        assert weakness(key.hex()) is None
        assert weakness(base64.b64encode(key).decode()) is None
    if len(set(half)) >= 14 and len(set(half.hex())) >= 12 and not any(b % 17 == 0 for b in half):
        assert weakness(str(uuid.UUID(bytes=half, version=4))) is None


@given(st.randoms(use_true_random=True))
def test_random_tokens_always_pass(random: object) -> None:
    """``openssl rand -hex 32``, ``-base64 32`` and UUIDs of version 1, 4 and 5."""
    key = random.randbytes(32)  # type: ignore[attr-defined]
    for text in (key.hex(), base64.b64encode(key).decode(), str(uuid.uuid1()), str(uuid.uuid4()), uuid.uuid4().hex,
                 str(uuid.uuid5(uuid.NAMESPACE_DNS, key.hex()))):  # fmt: skip
        assert weakness(text) is None, text


@given(st.text("ab", min_size=1, max_size=4), st.integers(32, 80))
def test_repetition_is_never_strong(unit: str, length: int) -> None:
    """Whatever its period."""
    assert weakness((unit * length)[:length]) is not None


WORDS = st.text("ABC_", max_size=7)


@given(WORDS, WORDS, st.integers(0, 4))
def test_the_edit_distance_is_a_distance_and_its_bound_is_safe(one: str, other: str, at_most: int) -> None:
    """Zero for equals only, symmetric; with a bound it is exact up to it and above it beyond."""
    distance = edit_distance(one, other)
    assert (distance == 0) == (one == other)
    assert distance == edit_distance(other, one)
    assert abs(len(one) - len(other)) <= distance <= max(len(one), len(other))
    bounded = edit_distance(one, other, at_most)
    assert bounded == distance if distance <= at_most else bounded > at_most


SECRETS = [variable.name for variable in VARIABLES if variable.secret]


@given(st.sampled_from(SECRETS), st.text(string.ascii_letters + "-_!", min_size=8))
def test_no_problem_ever_holds_a_secret(name: str, secret: str) -> None:
    """In any profile, through the environment or a flag."""
    value = f"QZX{secret}QZX"
    for profile in ("development", "production"):
        for argv, environ in (([], {name: value}), ([f"--{name.lower().replace('_', '-')}", value], {})):
            try:
                warnings = load(argv, {**environ, "SECURITY_PROFILE": profile}, Path("/nonexistent")).warnings
                text = "".join(map(str, warnings))
            except ConfigurationError as error:
                text = str(error) + "".join(map(str, error.warnings))
            assert value not in text
