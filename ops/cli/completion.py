"""Shell completions of all commands, written out from their parsers: so they know what the commands know.

What is completed are subcommands, options, choices, and directories and files where the value is one. The scripts are
plain functions of the shell; nothing of Python runs while somebody presses Tab.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from typing import Final

import attrs

SHELLS: Final = ("bash", "zsh", "fish")
COMMANDS: Final = {
    "mcp-admin": "admin",
    "mcp-connections": "connections",
    "mcp-health": "health",
    "mcp-secure-client": "client",
    "mcp-security-audit": "audit",
    "mcp-token": "token",
}
_PATHS: Final = {"DIR": "directory", "FILE": "file", "TARGET": "directory"}


@attrs.frozen
class Option:
    """``value``: none, word, directory or file; ``choices`` of a word."""

    names: tuple[str, ...]
    help: str
    value: str
    choices: tuple[str, ...]


@attrs.frozen
class Level:
    """A command or a subcommand: what may follow it. ``path`` is the words that lead there."""

    path: tuple[str, ...]
    options: tuple[Option, ...]
    subcommands: dict[str, str]  # with their help
    choices: tuple[str, ...]  # of positional arguments
    value: str  # of positional arguments: none, word, directory or file


def script(shell: str) -> str:
    """All of it for one of SHELLS, to be evaluated by that shell."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    programs = {
        name: list(_levels((), importlib.import_module(f".{module}", __package__).parser()))
        for name, module in COMMANDS.items()
    }
    return write(programs)


def _levels(path: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[Level]:
    options: list[Option] = []
    subcommands: dict[str, str] = {}
    below: dict[str, argparse.ArgumentParser] = {}
    choices: tuple[str, ...] = ()
    value = "none"
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to see what it knows
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            below = action.choices
            texts = {one.dest: one.help or "" for one in action._choices_actions}  # noqa: SLF001
            subcommands = {name: texts.get(name, "") for name in below}
            continue
        kind = "none" if action.nargs == 0 else _PATHS.get(str(action.metavar), "word")
        known = tuple(map(str, action.choices or ()))
        if action.option_strings:
            text = (action.help or "").replace("%(default)s", str(action.default)).replace("%(prog)s", parser.prog)
            options.append(Option(tuple(action.option_strings), text, kind, known))
        else:
            value, choices = kind, choices + known
    yield Level(path, tuple(options), subcommands, choices, value)
    for name, child in below.items():
        yield from _levels((*path, name), child)


# --- bash: a case over the words that lead to the level, found by walking over what is typed already


def _bash(programs: dict[str, list[Level]]) -> str:
    lines = ["# Completions of Portcullis' commands for bash: source it, or put it into bash_completion.d."]
    for name, levels in programs.items():
        function = f"_{name.replace('-', '_')}"
        valued = " ".join(sorted({one for level in levels for opt in level.options if opt.value != "none"
                                  for one in opt.names}))  # fmt: skip
        lines += [
            f"{function}() {{",
            '    local current=${COMP_WORDS[COMP_CWORD]} previous= path= word skip=0 i',
            "    (( COMP_CWORD > 0 )) && previous=${COMP_WORDS[COMP_CWORD-1]}",
            "    COMPREPLY=()",
            "    for (( i = 1; i < COMP_CWORD; i++ )); do",
            "        word=${COMP_WORDS[i]}",
            "        if (( skip )); then skip=0; continue; fi",
            f'        case " {valued} " in *" $word "*) skip=1; continue;; esac',
            '        case "$path $word" in',
            *(f"            {_quoted(_at(level.path))}) path={_quoted(_at(level.path))};;" for level in levels[1:]),
            "        esac",
            "    done",
            '    case "$path" in',
        ]
        for level in levels:
            lines += [f"        {_quoted(_at(level.path))})", *_bash_level(level), "            ;;"]
        lines += ["    esac", "}", f"complete -F {function} {name}"]
    return "\n".join(lines) + "\n"


def _at(path: tuple[str, ...]) -> str:
    """The path as the functions build it up: each word after a space."""
    return "".join(f" {word}" for word in path)


def _bash_level(level: Level) -> Iterator[str]:
    yield '            case "$previous" in'
    for option in level.options:
        if option.value != "none":
            yield f"                {'|'.join(option.names)}) {_bash_reply(option.value, option.choices)}; return;;"
    yield "            esac"
    names = " ".join(name for option in level.options for name in option.names)
    yield '            if [[ $current == -* ]]; then'
    yield f'                COMPREPLY=( $(compgen -W {_quoted(names)} -- "$current") )'
    yield "            else"
    words = (*level.subcommands, *level.choices)
    yield f"                {_bash_reply(level.value, words)}"
    yield "            fi"


def _bash_reply(value: str, words: tuple[str, ...]) -> str:
    if words:
        return f"COMPREPLY=( $(compgen -W {_quoted(' '.join(words))} -- \"$current\") )"
    if value in ("directory", "file"):
        flag = "d" if value == "directory" else "f"
        return f'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -{flag} -- "$current")'
    return ":"


def _quoted(text: str) -> str:
    """For any of the three shells: in single quotes, with none inside."""
    return "'" + text.replace("\\", "").replace("'", "’") + "'"


# --- zsh: one _arguments call a level; subcommands by a state


def _zsh(programs: dict[str, list[Level]]) -> str:
    lines = [
        f"#compdef {' '.join(programs)}",
        "# Completions of Portcullis' commands for zsh: source it after compinit, or put it into $fpath as _mcp-admin.",
    ]
    for levels_of, levels in programs.items():
        for level in levels:
            lines += _zsh_level(levels_of, level)
    lines += ["_portcullis() {", "    case $service in"]
    lines += [f"        {name}) {_zsh_name(name, ())};;" for name in programs]
    lines += ["    esac", "}", 'if [[ "${funcstack[1]}" == _mcp-admin ]]; then', '    _portcullis "$@"', "else"]
    lines += [f"    compdef _portcullis {' '.join(programs)}", "fi"]
    return "\n".join(lines) + "\n"


def _zsh_name(program: str, path: tuple[str, ...]) -> str:
    return "_" + "_".join((program, *path)).replace("-", "_")


def _zsh_level(program: str, level: Level) -> Iterator[str]:
    yield f"{_zsh_name(program, level.path)}() {{"
    yield "    local context state state_descr line"
    yield "    typeset -A opt_args"
    specs = [
        _quoted(f"{name}[{_zsh_text(option.help)}]{_zsh_value(option.value, option.choices)}")
        for option in level.options
        for name in option.names
    ]
    if level.subcommands:
        specs += ["'1: :->command'", "'*:: :->rest'"]
    elif level.choices or level.value != "none":
        specs.append(_quoted(f"*{_zsh_value(level.value, level.choices)}"))
    yield f"    _arguments -C -S {' '.join(specs)}"
    if level.subcommands:
        rows = " ".join(_quoted(f"{name}:{_zsh_text(text)}") for name, text in level.subcommands.items())
        yield "    case $state in"
        yield f"        command) local -a commands=( {rows} ); _describe command commands;;"
        yield "        rest) case $line[1] in"
        for name in level.subcommands:
            yield f"            {name}) {_zsh_name(program, (*level.path, name))};;"
        yield "        esac;;"
        yield "    esac"
    yield "}"


def _zsh_text(text: str) -> str:
    """A description: what _arguments takes for its own syntax is taken out."""
    return text.translate(str.maketrans("[]:", "(),", "`$"))


def _zsh_value(value: str, choices: tuple[str, ...]) -> str:
    if value == "none":
        return ""
    if choices:
        return f":value:({' '.join(choice.replace(':', chr(92) + chr(58)) for choice in choices)})"
    return {"directory": ":directory:_files -/", "file": ":file:_files", "word": ":value: "}[value]


# --- fish: a line an option, with the condition under which it holds


def _fish(programs: dict[str, list[Level]]) -> str:
    lines = ["# Completions of Portcullis' commands for fish: put it into ~/.config/fish/completions/mcp-admin.fish."]
    for name, levels in programs.items():
        lines.append(f"complete -c {name} -f")
        for level in levels:
            lines += _fish_level(name, level)
    return "\n".join(lines) + "\n"


def _fish_level(program: str, level: Level) -> Iterator[str]:
    seen = [f"__fish_seen_subcommand_from {word}" for word in level.path]
    inside = f"not __fish_seen_subcommand_from {' '.join(level.subcommands)}" if level.subcommands else ""
    condition = "; and ".join([*seen, *([inside] if inside else [])])
    start = f"complete -c {program}" + (f" -n {_quoted(condition)}" if condition else "")
    for name, text in level.subcommands.items():
        yield f"{start} -a {name} -d {_quoted(text)}"
    for choice in level.choices:
        yield f"{start} -a {_quoted(choice)}"
    if not level.subcommands and not level.choices and level.value in ("directory", "file"):
        yield f"{start} -a '(__fish_complete_{'directories' if level.value == 'directory' else 'path'})'"
    for option in level.options:
        names = " ".join(f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in option.names)
        yield f"{start} {names}{_fish_value(option)} -d {_quoted(option.help)}"


def _fish_value(option: Option) -> str:
    if option.choices:
        return f" -x -a {_quoted(' '.join(option.choices))}"
    return {
        "none": "", "word": " -x", "file": " -r -F", "directory": " -x -a '(__fish_complete_directories)'"
    }[option.value]  # fmt: skip
