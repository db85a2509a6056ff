"""``streamlstm completion``: scripts for shells, made of what the parser of arguments itself knows.

What may stand in an argument's place is told by its choices, or by its type: a ``Path`` is a file,
:func:`streamlstm.arguments.table` a file or a bundled series; of others nothing is known.
"""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from streamlstm import arguments
from streamlstm.datasets.bundled import DATASETS


class Argument(NamedTuple):
    """An option or a place of a command."""

    flags: tuple[str, ...]
    """none: a place"""
    about: str
    takes: bool
    """a value; places do"""
    words: tuple[str, ...]
    """that may be its value"""
    files: bool
    """may be its value"""


class Command(NamedTuple):
    """One that the parser knows."""

    name: str
    about: str
    options: tuple[Argument, ...]
    places: tuple[Argument, ...]


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """What completes the command of ``parser`` in ``shell``: bash, zsh or fish."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    found = [*commands(parser)]
    return "".join(f"{line}\n" for line in write(parser.prog, found))


def commands(parser: argparse.ArgumentParser) -> Iterator[Command]:
    """All of them, the first without a name: what comes before a command."""
    yield _command("", "", parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, each in action.choices.items():
                yield _command(name, about.get(name, ""), each)


def _command(name: str, about: str, parser: argparse.ArgumentParser) -> Command:
    found = [
        _argument(action)
        for action in parser._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
    ]
    options = tuple(each for each in found if each.flags)
    return Command(name, about, options, tuple(each for each in found if not each.flags))


def _argument(action: argparse.Action) -> Argument:
    words = tuple(map(str, action.choices or ()))
    if action.type is arguments.table:
        words = tuple(DATASETS)
    return Argument(
        tuple(action.option_strings),
        " ".join((action.help or "").replace("%%", "%").split()),
        action.nargs != 0,
        words,
        action.type in (Path, arguments.table),
    )


# --- bash -----------------------------------------------------------------------------------------


def _bash(prog: str, found: list[Command]) -> Iterator[str]:
    """The words before the cursor are gone through; what may come next is one of the cases."""
    valued = [
        f"{each.name}:{flag}"
        for each in found
        for option in each.options
        if option.takes
        for flag in option.flags
    ]
    yield f"# bash completion of {prog}"
    yield f"_{prog}() {{"
    yield "    local command= word= before= place=0 valued words= files= i"
    yield f"    valued={shlex.quote(' ' + ' '.join(valued) + ' ')}"
    yield from """\
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == = ]]; then  # bash parts words there, and at colons
            continue
        elif [[ $word == : ]]; then
            ((i++))
        elif [[ -n $before ]]; then
            before=
        elif [[ $valued == *" $command:$word "* ]]; then
            before=$word
        elif [[ $word != -* && -z $command ]]; then
            command=$word
        elif [[ $word != -* ]]; then
            ((place++))
        fi
    done
    word=${COMP_WORDS[COMP_CWORD]}
    [[ $word == = ]] && word=
    case "$command:${before:-$place}" in""".splitlines()
    for each in found:
        for option in each.options:
            if option.takes:
                yield from _bash_case(each.name, "|".join(option.flags), option)
        for number, place in enumerate(each.places):
            yield from _bash_case(each.name, str(number), place)
    names = " ".join(each.name for each in found if each.name)
    yield f"        :0) words={shlex.quote(names)} ;;"
    yield "    esac"
    yield "    if [[ -z $before && $word == -* ]]; then files="
    yield "        case $command in"
    for each in found:
        flags = " ".join(flag for option in each.options for flag in option.flags)
        yield f"            {each.name or chr(39) * 2}) words={shlex.quote(flags)} ;;"
    yield "        esac"
    yield "    fi"
    yield from """\
    mapfile -t COMPREPLY < <(
        compgen -W "$words" -- "$word"
        [[ $files ]] && compgen -f -- "$word"
    )
    [[ $files ]] && compopt -o filenames
    return 0""".splitlines()
    yield "}"
    yield f"complete -F _{prog} {prog}"


def _bash_case(command: str, what: str, argument: Argument) -> Iterator[str]:
    says = f" words={shlex.quote(' '.join(argument.words))}" * bool(argument.words)
    says += " files=1" * argument.files
    if says:
        cases = "|".join(f"{command}:{each}" for each in what.split("|"))
        yield f"        {cases}){says} ;;"


# --- zsh ------------------------------------------------------------------------------------------


def _zsh(prog: str, found: list[Command]) -> Iterator[str]:
    yield f"#compdef {prog}"
    yield f"_{prog}() {{"
    yield "    local curcontext=$curcontext state line"
    yield "    typeset -A opt_args"
    yield "    _arguments -C \\"
    for option in found[0].options:
        yield from (f"        {spec} \\" for spec in _zsh_option(option))
    yield "        '1: :->command' '*:: :->rest'"
    yield "    case $state in"
    yield "    command)"
    yield "        local -a commands=("
    for each in found[1:]:
        yield f"            {shlex.quote(f'{each.name}:{each.about}')}"
    yield "        )"
    yield "        _describe command commands ;;"
    yield "    rest)"
    yield "        case $line[1] in"
    for each in found[1:]:
        specs = [spec for option in each.options for spec in _zsh_option(option)]
        for number, place in enumerate(each.places, 1):
            specs.append(
                shlex.quote(f"{number}:{_zsh_text(place.about) or ' '}:{_zsh_value(place)}")
            )
        yield f"        {each.name})"
        yield "            _arguments \\"
        yield from (f"                {spec} \\" for spec in specs[:-1])
        yield f"                {specs[-1]} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    # read by eval or source, or put into a folder of $fpath as _streamlstm
    yield f'if [[ $funcstack[1] == _{prog} ]]; then _{prog} "$@"; else compdef _{prog} {prog}; fi'


def _zsh_option(option: Argument) -> Iterator[str]:
    for flag in option.flags:
        value = f":value:{_zsh_value(option)}" * option.takes
        yield shlex.quote(f"{flag}{'=' * (option.takes and flag.startswith('--'))}"
                          f"[{_zsh_text(option.about)}]{value}")  # fmt: skip


def _zsh_value(argument: Argument) -> str:
    words = " ".join(map(_zsh_text, argument.words))
    if argument.files:
        return f" _alternative 'files:file:_files' 'words:series:({words})'" if words else "_files"
    return f"({words})" if words else " "


def _zsh_text(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


# --- fish -----------------------------------------------------------------------------------------


def _fish(prog: str, found: list[Command]) -> Iterator[str]:
    yield f"complete -c {prog} -f"
    for option in found[0].options:
        yield _fish_line(prog, "__fish_use_subcommand", option)
    for each in found[1:]:
        about = _fish_quote(each.about)
        yield f"complete -c {prog} -n __fish_use_subcommand -a {each.name} -d {about}"
    for each in found[1:]:
        there = f"__fish_seen_subcommand_from {each.name}"
        for argument in (*each.options, *each.places):
            if argument.flags or argument.words or argument.files:
                yield _fish_line(prog, there, argument)


def _fish_line(prog: str, condition: str, argument: Argument) -> str:
    flags = (
        f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in argument.flags
    )
    said = f"complete -c {prog} -n {_fish_quote(condition)}{''.join(flags)}"
    if argument.takes and argument.flags:
        said += " -r"
    if argument.takes:
        said += " -F" if argument.files else " -f"
    if argument.words:
        said += f" -a {_fish_quote(' '.join(argument.words))}"
    return f"{said} -d {_fish_quote(argument.about)}" if argument.flags else said


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
