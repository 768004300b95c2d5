"""One ENI and one environment in a process of its own: `python -m bench.engine_process VPC ENVIRONMENT ENI_ADDRESS IO`.

VPC and ENVIRONMENT are names of namespaces, IO is an I/O engine. Says "ready"; then answers each line on stdin with one
of JSON, what the engine has counted so far; ends when stdin does, and removes what it made.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import msgspec
import uvloop

from hyperplane.attachment import Attachments
from hyperplane.dataplane import Engine
from hyperplane.model import SecurityGroup


def counted(engine: Engine) -> dict[str, Any]:
    return {"drops": engine.counters().drops, "status": msgspec.to_builtins(engine.status())}


async def serve(vpc: str, environment: str, eni_address: str, io: str) -> None:
    loop = asyncio.get_running_loop()
    async with Attachments(io=io) as attachments:
        everything = SecurityGroup.parse("everything", ["all"])
        eni = await attachments.open_eni(vpc=vpc, addresses=eni_address, security_groups=[everything])
        await attachments.attach(eni, namespace=environment)
        print("ready", flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(counted(attachments.engine)), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
