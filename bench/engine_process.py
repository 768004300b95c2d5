"""One ENI and its environments in a process of their own:

    python -m bench.engine_process VPC ENI_ADDRESS OPTIONS ENVIRONMENT...

VPC and ENVIRONMENT are names of namespaces, OPTIONS those of `Engine` as a JSON object. Says "ready"; then answers each
line on stdin with one of JSON, what the engine has counted so far; ends when stdin does, and removes what it made.
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


async def serve(vpc: str, eni_address: str, options: str, *environments: str) -> None:
    loop = asyncio.get_running_loop()
    async with Attachments(**json.loads(options)) as attachments:
        everything = SecurityGroup.parse("everything", ["all"])
        eni = await attachments.open_eni(vpc=vpc, addresses=eni_address, security_groups=[everything])
        for environment in environments:
            await attachments.attach(eni, namespace=environment)
        print("ready", flush=True)
        while await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(counted(attachments.engine)), flush=True)


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:]))
