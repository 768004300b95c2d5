"""What `flow` and `drop` do. Each returns the exit code and raises HyperplaneError."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from hyperplane.cli.asking import Names, every
from hyperplane.cli.options import Caller
from hyperplane.cli.resource_verbs import print_json


def flows(caller: Caller, filters: Mapping[str, Any], *, quiet: bool) -> int:
    with caller.client() as client:
        found = list(every(client, "flow", account=caller.account, **filters))
        if quiet:
            for flow in found:
                print(flow.id)
        elif caller.as_json:
            print_json(found)
        elif found:
            from hyperplane.cli.tables import flow_table
            from hyperplane.cli.words import boot_time

            names = Names(client)
            named = [msgspec.structs.replace(flow, tunnel=names.of("environment", flow.tunnel)) for flow in found]
            caller.printer().table(flow_table(named, boot_time(), len(named)))
        else:
            print("no flows")
    return 0


def show_flow(caller: Caller, flow_id: int) -> int:
    with caller.client() as client:
        flow = client.get_flow(flow_id)
        if caller.as_json:
            print_json(flow)
        else:
            from hyperplane.cli.tables import flow_table
            from hyperplane.cli.words import boot_time

            named = msgspec.structs.replace(flow, tunnel=Names(client).of("environment", flow.tunnel))
            caller.printer().table(flow_table([named], boot_time(), 1))
    return 0


def drops(caller: Caller, filters: Mapping[str, Any]) -> int:
    with caller.client() as client:
        found = list(every(client, "drop", account=caller.own, **filters))
        if caller.as_json:
            print_json(found)
        elif found:
            from hyperplane.cli.tables import drop_table
            from hyperplane.cli.words import boot_time

            names = Names(client)
            named = [msgspec.structs.replace(drop, link=names.of("environment", drop.link)) for drop in found]
            caller.printer().table(drop_table(named, boot_time()))
        else:
            print("no dropped packets are remembered")
    return 0
