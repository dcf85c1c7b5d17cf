"""Shell completion of verbs, groups, keys, values and files: `eval "$(llm2slm -sc install=bash)"`.

The shell calls `llm2slm -sc query=SHELL` at each press of the tab key. Candidates come from the conf folder and the
sources, as in `help`, without importing heavy libraries.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from llm2slm.cli.folders import conf_folder
from llm2slm.cli.help import FLAGS, config_dirs, group_options
from llm2slm.cli.schema import SCHEMAS, Key, keys, lookup
from llm2slm.types import UserError

FLAG = ("-sc", "--shell-completion")
BASH = """_llm2slm() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null))
}
complete -o nospace -F _llm2slm llm2slm"""
ZSH = f"""(( $+functions[compdef] )) || {{ autoload -U +X compinit && compinit -i; }}
autoload -U +X bashcompinit && bashcompinit
{BASH.replace("query=bash", "query=zsh")}"""
FISH = """complete -c llm2slm -f -a '(COMP_LINE=(commandline -cp) llm2slm -sc query=fish 2>/dev/null)'"""
INSTALL = {"bash": BASH, "zsh": ZSH, "fish": FISH}
UNINSTALL = {
    "bash": "complete -r llm2slm; unset -f _llm2slm",
    "zsh": "compdef -d llm2slm; unfunction _llm2slm",
    "fish": "complete -c llm2slm -e",
}
OUTSIDE = ("hydra.run.dir=", "hydra.sweep.dir=")
"""Keys of Hydra that users set."""


def shell_completion(arguments: list[str], verbs: Iterable[str]) -> str:
    """The output of `-sc install=SHELL`, `-sc uninstall=SHELL` and `-sc query=SHELL`.

    Raises:
        UserError: an unknown command or shell.
    """
    given = [argument for argument in arguments if argument not in FLAG]
    command, _, shell = given[0].partition("=") if len(given) == 1 else ("", "", "")
    if command not in ("install", "uninstall", "query") or shell not in INSTALL:
        raise UserError(
            f"{FLAG[0]} {' '.join(given)}: give install=SHELL or uninstall=SHELL, with one of {', '.join(INSTALL)}, as "
            f'eval "$(llm2slm {FLAG[0]} install=bash)"'
        )
    if command != "query":
        return {"install": INSTALL, "uninstall": UNINSTALL}[command][shell]
    line = os.environ.get("COMP_LINE", "")
    point = int(os.environ.get("COMP_POINT") or len(line))
    *before, word = f"{line[:point]} ".split(" ")[:-1] or [""]
    found = complete([part for part in before[1:] if part], word, list(verbs))
    if shell == "fish":  # fish appends spaces
        return "\n".join(candidate.rstrip() for candidate in found)
    breaks = os.environ.get("COMP_WORDBREAKS", "")
    # bash replaces only the part after the last of these characters
    start = max((word.rfind(mark) + 1 for mark in "=:" if mark in breaks), default=0)
    return "\n".join(candidate[start:] for candidate in found)


def complete(words: list[str], word: str, verbs: list[str]) -> list[str]:
    """Completions of the word under the cursor, in order; complete words end with a space.

    Args:
        words: the words before it, without the name of the program.
    """
    if not words:
        candidates = [f"{name} " for name in (*verbs, "--help", "--version")]
        return [candidate for candidate in candidates if candidate.startswith(word)]
    if words[0] not in SCHEMAS:
        return []
    schema = SCHEMAS[words[0]]
    if word.startswith("-"):
        flags = [name.split(" ")[0] for text in FLAGS if text.startswith("-") for name in text.split(", ")]
        return sorted(f"{flag} " for flag in flags if flag.startswith(word))
    if words[-1] in ("-cd", "--config-dir"):
        return _files(word)
    sign = next((sign for sign in ("++", "+", "~") if word.startswith(sign)), "")
    try:
        folders = [conf_folder(), *config_dirs(words)]
    except UserError:
        folders = [conf_folder()]
    groups = group_options(folders, schema)
    name, equals, value = word.removeprefix(sign).partition("=")
    if equals:
        found = _values(name, value, groups, schema)
        return [f"{sign}{name}={candidate}" for candidate in found]
    found = [candidate for candidate in _names(name, groups, schema) if candidate.startswith(name)]
    runs = _files(word) if "runs" in keys(schema) and not sign else []
    return [f"{sign}{candidate}" for candidate in found] + runs


def _names(word: str, groups: Iterable[str], schema: type) -> list[str]:
    """Groups, and keys of the section of the word, followed by `=`, or by `.` if they are sections."""
    section = word.rpartition(".")[0]
    found = [] if section else [f"{group}=" for group in groups]
    for key in keys(schema).values():
        if key.name.rpartition(".")[0] == section:
            found += [f"{key.name}."] if key.section else [f"{key.name}="]
    return sorted({*found, *(OUTSIDE if word.startswith("hydra") else ("hydra.",) if not section else ())})


def _values(name: str, value: str, groups: dict[str, list[str]], schema: type) -> list[str]:
    """Values of a group or key. Of several values (`A,B`: a sweep or a list) the last one is completed."""
    key = lookup(schema, name)
    if name in groups:
        options = groups[name]
    elif key is not None and not key.section:
        options = _choices(key)
        if not options:
            return _files(value) if key.text or key.texts else []
    else:
        return _files(value) if f"{name}=" in OUTSIDE else []
    start = max(value.rfind(","), value.rfind("[")) + 1
    end = "" if "[" in value else " "  # further items may follow in a list
    return [f"{value[:start]}{option}{end}" for option in options if option.startswith(value[start:])]


def _choices(key: Key) -> list[str]:
    for kind in key.members:
        if kind is bool:
            return ["false", "true"]
        if isinstance(kind, type) and issubclass(kind, Enum):
            return sorted(str(member.value) for member in kind)
    return key.choices


def _files(start: str) -> list[str]:
    """Files and folders whose path starts with `start`; hidden ones only if the name starts with a dot."""
    folder, name = os.path.split(start)
    try:
        inside = sorted(Path(folder or ".").expanduser().iterdir())
    except OSError:
        return []
    named = [path for path in inside if path.name.startswith(name) and (name or not path.name.startswith("."))]
    ends = [(path.name.replace(" ", "\\ "), "/" if path.is_dir() else " ") for path in named]
    return [f"{os.path.join(folder, path)}{end}" for path, end in ends]  # noqa: PTH118  keeps the path as typed
