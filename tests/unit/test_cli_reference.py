"""docs/cli.md names every command and every option, and none that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hyperplane.cli.commands import MODULES, group
from hyperplane.cli.failures import CODES
from hyperplane.cli.kinds import BY_NAME

TEXT = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
SHARED = {"--instance", "--account", "--json", "--no-color"}
ALWAYS = {"--client-token", "--quiet"}  # said once for many


def commands() -> Iterator[tuple[str, click.Command]]:
    """Those without commands of their own, with their section's name."""
    for name in MODULES:
        command = group.get_command(click.Context(group), name)
        assert command, name
        section = "resources" if name in BY_NAME else name
        if isinstance(command, click.Group):
            yield from ((section, one) for one in command.commands.values() if not one.hidden)
        else:
            yield section, command


def options(command: click.Command) -> set[str]:
    found = [option for option in command.params if isinstance(option, click.Option)]
    return {name for option in found for name in option.opts if name.startswith("--")}


def documented(section: str) -> set[str]:
    return set(re.findall(r"`(--[a-z][a-z-]+)", "\n".join(re.findall(r"^\|.*$", SECTIONS[section], re.MULTILINE))))


def test_every_command_has_a_section() -> None:
    assert {section for section, _ in commands()} == set(SECTIONS)


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("resources", "flow", "drop")])
def test_a_section_has_the_commands_options(section: str) -> None:
    (command,) = [command for name, command in commands() if name == section]
    found = documented(section)
    if section == "engine":  # which refers to the daemon's table
        found |= documented("daemon") & options(command)
    assert {name for name in found if not name.startswith("--no-huge")} == options(command)


@pytest.mark.parametrize("section", ["resources", "flow", "drop"])
def test_a_section_of_many_commands_has_their_options(section: str) -> None:
    all_of_them = set().union(*(options(command) for name, command in commands() if name == section))
    found = {name for name in documented(section) if name not in ("--no-silent", "--no-routed")}
    assert found | SHARED | ALWAYS == all_of_them | SHARED | ALWAYS
    for name in ALWAYS & all_of_them:
        assert name in SECTIONS[section]


def test_filters_are_those_of_the_lists() -> None:
    for noun in BY_NAME.values():
        flags = " ".join(f"`--{name}`" for name in noun.filters)
        assert f"| `{noun.name} list` | {flags} |" in TEXT


def test_exit_codes_are_listed() -> None:
    for code in {0, 1, *(code for _, code in CODES)}:
        assert re.search(rf"^\| {code} \|", TEXT, re.MULTILINE)
