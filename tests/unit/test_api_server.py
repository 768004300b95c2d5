"""The socket itself: who may connect, what is in its way, how it ends; and the metrics that it gives."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hyperplane import errors
from hyperplane.api import make_app, metrics, serve
from hyperplane.api.service import EniMeasures, Measures
from hyperplane.client import Client
from hyperplane.codec import to_json
from hyperplane.model import Counters
from hyperplane.resources import EnvironmentSpec
from tests.unit.api_support import COUNTERS, DOCUMENT, ENVIRONMENT, FakeService, running


async def test_the_socket_is_for_its_group_only_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    group = grp.getgrgid(os.getgid()).gr_name
    runner = await serve(make_app(FakeService()), path, group)
    found = path.stat()
    assert (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode)) == (True, 0o660)
    assert found.st_gid == os.getgid()
    await runner.cleanup()
    assert not path.exists()


async def test_the_umask_stays_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        runner = await serve(make_app(FakeService()), tmp_path / "api.sock")
        await runner.cleanup()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


async def test_a_socket_that_a_dead_daemon_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    runner = await serve(make_app(FakeService()), path)
    async with Client(path=path) as client:
        assert (await client.health()).status == "ok"
    await runner.cleanup()


async def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    runner = await serve(make_app(FakeService()), path)
    with pytest.raises(errors.AlreadyRunning, match="stop the other daemon"):
        await serve(make_app(FakeService()), path)
    async with Client(path=path) as client:
        assert (await client.health()).status == "ok"
    await runner.cleanup()


async def test_another_ones_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    runner = await serve(make_app(FakeService()), path)
    path.rename(tmp_path / "old.sock")
    second = await serve(make_app(FakeService()), path)
    await runner.cleanup()
    assert path.is_socket()
    await second.cleanup()


async def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    app = make_app(FakeService())
    with pytest.raises(errors.InvalidValue, match="mkdir -p"):
        await serve(app, tmp_path / "missing" / "api.sock")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(errors.InvalidValue, match="no socket"):
        await serve(app, file)
    assert file.read_text() == "mine"
    with pytest.raises(errors.InvalidValue, match="groupadd"):
        await serve(app, tmp_path / "api.sock", "no-such-group")
    with pytest.raises(errors.InvalidValue):
        await serve(app, tmp_path / ("x" * 120))
    assert os.listdir(tmp_path) == ["file"]


async def test_a_request_that_is_being_answered_ends_before_the_server(tmp_path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeService):
        async def export(self, account: str):  # type: ignore[no-untyped-def]
            begun.set()
            await go_on.wait()
            return await super().export(account)

    runner = await serve(make_app(Slow()), tmp_path / "api.sock")
    async with Client(path=tmp_path / "api.sock") as client:
        answer = asyncio.create_task(client.export())
        await begun.wait()
        ending = asyncio.create_task(runner.cleanup())
        await asyncio.sleep(0)
        go_on.set()
        assert (await answer).account == "default"
        await ending


async def test_a_thousand_starts_at_once_are_all_served(tmp_path: Path) -> None:
    service = FakeService()
    runner = await serve(make_app(service), tmp_path / "api.sock")
    async with Client(path=tmp_path / "api.sock") as client:
        await client.apply(DOCUMENT)
        starts = (client.start_environment(EnvironmentSpec(function="thumbnails", name=f"e{i}")) for i in range(1000))
        started = await asyncio.gather(*starts)
        assert len({one.id for one in started}) == 1000
        assert sum([1 async for _ in client.environments()]) == 1000  # in two pages
    await runner.cleanup()


# Metrics


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_metrics_are_what_prometheus_reads(tmp_path: Path) -> None:
    with running(tmp_path / "api.sock") as api:
        api.ask("POST", "/v1/apply", b'{"document":' + to_json(DOCUMENT) + b"}")
        api.ask("POST", "/v1/environments", to_json(ENVIRONMENT))
        api.ask("POST", "/v1/environments", to_json(EnvironmentSpec(function="thumbnails", client_token="t")))
        api.ask("POST", "/v1/environments", to_json(EnvironmentSpec(function="thumbnails", client_token="t")))
        status, headers, body = api.ask("GET", "/v1/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = samples(body.decode())
    eni = (("account", "default"), ("eni", "eni-1"))
    assert found["hyperplane_packets_total", (("direction", "in"),)] == 5
    assert found["hyperplane_bytes_total", (("direction", "out"),)] == 400
    assert found["hyperplane_flows_created_total", ()] == 3
    assert found["hyperplane_flows", ()] == 3
    assert found["hyperplane_drops_total", (("reason", "no_flow"),)] == 2
    assert found["hyperplane_engine_restarts_total", ()] == 1
    assert found["hyperplane_engine_running", ()] == 1
    assert found["hyperplane_vpcs", ()] == 1
    assert found["hyperplane_security_groups", ()] == 2
    assert found["hyperplane_functions", (("state", "Active"),)] == 1
    assert found["hyperplane_eni_packets_total", (eni[0], ("direction", "in"), eni[1])] == 5
    assert found["hyperplane_eni_flows", eni] == 3
    assert found["hyperplane_attach_duration_seconds_count", (("part", "daemon"),)] == 2  # the third was a repetition
    assert found["hyperplane_attach_duration_seconds_bucket", (("le", "0.0005"), ("part", "daemon"))] == 2
    assert found["hyperplane_attach_duration_seconds_bucket", (("le", "0.0005"), ("part", "total"))] == 0


def test_series_of_enis_are_bounded_and_their_sum_is_right() -> None:
    count = metrics.MOST_ENIS + 5
    enis = [EniMeasures(eni=f"eni-{i}", account="a", counters=COUNTERS, flows=1) for i in range(count)]
    shown = Measures(
        traffic=Counters(), flows=0, max_flows=1, restarts=0, engine_running=False, resources={}, enis=enis
    )
    found = samples(metrics.Metrics().exposition(shown).decode())
    flows = {labels: value for (name, labels), value in found.items() if name == "hyperplane_eni_flows"}
    assert len(flows) == metrics.MOST_ENIS + 1
    assert sum(flows.values()) == count
    assert flows[("account", "other"), ("eni", "other")] == 5
