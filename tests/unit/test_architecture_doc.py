"""docs/architecture.md names what there is: files of the engine, packages and their layers, messages, actions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

from hyperplane.control import Action
from hyperplane.ipc import messages

# The sanitized run happens in a mirror below the project: the documents are in one of the folders above.
ROOT = next(parent for parent in Path(__file__).parents if (parent / "docs" / "architecture.md").exists())
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    match = re.search(rf"^## \d+\. {heading}$(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def test_every_file_of_the_engine_is_named() -> None:
    shape = section("Shape")
    assert {path.stem for path in (ROOT / "csrc").glob("*.c") if f"`{path.stem}`" not in shape} == set()


def test_packages_stand_in_the_order_of_their_layers() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    order = [set(layer.split(" | ")) for layer in layers[0]["layers"]]
    named = re.findall(r"^\| `hyperplane\.(\w+)` \|", section("Shape"), re.MULTILINE)
    assert set(named) == set().union(*order)
    places = [next(i for i, layer in enumerate(order) if name in layer) for name in named]
    assert places == sorted(places)


def test_every_message_and_action_is_named() -> None:
    for kind in (*get_args(messages.Request), *get_args(messages.Answer)):
        assert re.search(rf"`{kind.__name__}[`(]", section("Two processes")), kind
    for kind in get_args(Action):
        assert f"`{kind.__name__}`" in section("The control plane"), kind


def test_headings_are_numbered_in_order() -> None:
    numbers = [int(number) for number in re.findall(r"^## (\d+)\.", TEXT, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
