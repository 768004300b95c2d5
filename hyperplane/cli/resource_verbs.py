"""What list, show, create, update, delete and start do. Each returns the exit code and raises HyperplaneError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from hyperplane.cli.asking import Names, every, get, method, suggested
from hyperplane.cli.kinds import Noun
from hyperplane.cli.options import Caller
from hyperplane.codec import convert, to_json, to_text
from hyperplane.errors import InvalidValue, ResourceNotFound
from hyperplane.model import Timers
from hyperplane.resources import Environment, EnvironmentSpec, EnvironmentState


def print_json(value: Any) -> None:
    print(to_json(value).decode())


def show_list(caller: Caller, noun: Noun, filters: Mapping[str, Any], *, quiet: bool) -> int:
    with caller.client() as client:
        items = list(every(client, noun.name, account=caller.account, **filters))
        if quiet:
            for item in items:
                print(item.id)
        elif caller.as_json:
            print_json(items)
        elif items:
            from hyperplane.cli.tables import resource_table

            printer = caller.printer()
            printer.table(resource_table(noun, items, Names(client), short=printer.width > 0))
        else:
            print(f"no {noun.plural}")
    return 0


def show(caller: Caller, noun: Noun, ref: str) -> int:
    with caller.client() as client:
        return _show(caller, client, get(client, noun.name, ref, caller.own))


def create(caller: Caller, noun: Noun, values: dict[str, Any]) -> int:
    spec = _spec(noun.spec, {**values, "account": caller.own})
    with caller.client() as client:
        return _show(caller, client, method(client, "create", noun.name)(spec))


def update(caller: Caller, noun: Noun, ref: str, values: dict[str, Any]) -> int:
    if not values:
        raise InvalidValue("nothing to change", remedy=f"give options: hyperplane-nat {noun.name} update --help")
    with caller.client() as client:
        present = msgspec.to_builtins(get(client, noun.name, ref, caller.own), enc_hook=to_text)
        known = {name: present[name] for name in noun.spec.__struct_fields__ if name in present} if noun.spec else {}
        if "timers" in values:
            values["timers"] = {**known["timers"], **values["timers"]}
        spec = _spec(noun.spec, {**known, **values})
        return _show(caller, client, method(client, "update", noun.name)(present["id"], spec))


def delete(caller: Caller, noun: Noun, refs: Sequence[str]) -> int:
    """In the order given; stops at the first that fails."""
    with caller.client() as client:
        for ref in refs:
            try:
                method(client, "delete", noun.name)(ref, account=caller.own)
            except ResourceNotFound as error:
                raise suggested(client, noun.name, ref, caller.own, error) from None
            if not caller.as_json:
                print(f"deleted {noun.word} {ref}")
    return 0


def start(caller: Caller, values: dict[str, Any]) -> int:
    """fd: a descriptor that we were started with."""
    ways = [name for name in ("namespace", "pid", "fd") if name in values]
    if len(ways) > 1 and ways != ["pid", "fd"]:
        raise InvalidValue(f"--{ways[0]} and --{ways[1]} are given", remedy="give one: where the environment runs")
    descriptor = values.pop("fd", None)
    if descriptor is None and "pid" in values:
        values["namespace"] = f"pid:{values.pop('pid')}"
    with caller.client() as client:
        if descriptor is not None:
            values["descriptor"] = client.send_descriptor(descriptor)
        spec = _spec(EnvironmentSpec, {**values, "account": caller.own})
        try:
            environment = client.start_environment(spec)
        except ResourceNotFound as error:
            raise suggested(client, "function", spec.function, caller.own, error) from None
        return _show(caller, client, environment)


def end(caller: Caller, refs: Sequence[str], drain: float) -> int:
    with caller.client() as client:
        ended = []
        for ref in refs:
            try:
                ended.append(client.end_environment(ref, drain=drain, account=caller.own))
            except ResourceNotFound as error:
                raise suggested(client, "environment", ref, caller.own, error) from None
            if not caller.as_json:
                print(f"environment {ended[-1].name}: {ended[-1].state}")
        if caller.as_json:
            print_json(ended)
    return 0


def _show(caller: Caller, client: Any, item: Any) -> int:
    if caller.as_json:
        print_json(item)
    else:
        from hyperplane.cli.tables import resolver_lines, resource_lines

        lines = resource_lines(item, Names(client))
        if isinstance(item, Environment) and item.state is not EnvironmentState.ENDED:
            lines += resolver_lines(item, client.get_vpc(client.get_eni(item.eni, account=item.account).vpc).dns)
        caller.printer().pairs(lines)
    return 0


def _spec(kind: Any, values: Mapping[str, Any]) -> Any:
    """A request; the message of its error names the option."""
    if "timers" in values:
        Timers(**values["timers"])
    try:
        return convert(values, kind)
    except InvalidValue as error:
        option = error.field.partition("[")[0].replace("_", "-")
        text = error.message.removeprefix(f"{error.field}: ")
        message = f"--{option}: {text}" if option else text
        raise InvalidValue(message, remedy=error.remedy, field=error.field) from None
