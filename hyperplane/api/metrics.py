"""Prometheus metrics. Only how long attaching takes is counted for them: the rest is read when they are asked for.

Directions are those of `Counters`: in is what came from an environment or a VPC, out what was sent to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hyperplane import __version__
from hyperplane.api.service import EniMeasures, Measures
from hyperplane.model import Counters
from hyperplane.resources import Timings

PARTS: Final = Timings.__struct_fields__
BUCKETS: Final = (
    0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30,
)  # fmt: skip
MOST_ENIS: Final = 1000  # with series of their own
OTHERS: Final = "other"  # the sum of the rest
_DIRECTIONS: Final = ("in", "out")


class Metrics:
    """Belongs to one application."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        attach = Histogram(
            "hyperplane_attach_duration_seconds",
            "Starts of environments: in all, and in parts (see Timings).",
            ["part"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._attach = [attach.labels(part) for part in PARTS]
        ProcessCollector(registry=self._registry)
        self._engine = _Engine()
        self._registry.register(self._engine)

    def attached(self, timings: Timings) -> None:
        for part, histogram in zip(PARTS, self._attach, strict=True):
            histogram.observe(getattr(timings, part))

    def exposition(self, measures: Measures) -> bytes:
        self._engine.measures = measures
        return generate_latest(self._registry)


class _Engine(Collector):
    """What was measured at the scrape, as metrics."""

    measures: Measures | None = None

    def collect(self) -> Iterable[Metric]:
        if self.measures is None:  # at registration
            return []
        return [*_totals(self.measures), *_resources(self.measures), *_enis(self.measures)]


def _totals(measures: Measures) -> Iterator[Metric]:
    traffic = measures.traffic
    yield _counter("packets", "Packets of all links.", ("direction",), _both(traffic.packets_in, traffic.packets_out))
    yield _counter("bytes", "Bytes of all links.", ("direction",), _both(traffic.bytes_in, traffic.bytes_out))
    yield _counter("flows_created", "Flows that began.", (), [((), traffic.flows_created)])
    yield _counter("flows_ended", "Flows that ended.", (), [((), traffic.flows_ended)])
    refused = [((), traffic.refusals_sent)]
    yield _counter("refusals_sent", "Refusals told to senders: RST and ICMP errors.", (), refused)
    drops = [((reason,), count) for reason, count in sorted(traffic.drops.items())]
    yield _counter("drops", "Dropped packets.", ("reason",), drops)
    yield _counter("ignored", "Packets for their own link only: no drops.", (), [((), traffic.ignored)])
    yield _gauge("flows", "Flows now.", (), [((), measures.flows)])
    yield _gauge("flows_capacity", "Flows that the engine can hold.", (), [((), measures.max_flows)])
    yield from _workers(measures)
    yield _gauge("engine_running", "1 while an engine runs.", (), [((), int(measures.engine_running))])
    yield _counter("repairs", "Things in the kernel that others had changed, put right.", (), [((), measures.repairs)])
    yield _gauge("eni_troubles", "What is wrong with ENIs and cannot be put right.", (), [((), measures.troubles)])
    yield _counter("engine_restarts", "Engines started in the place of one that died.", (), [((), measures.restarts)])
    yield _gauge("pool_ready", "Fresh environments that are ready.", (), [((), measures.pool)])
    yield _gauge("build_info", "The daemon's version.", ("version",), [((__version__,), 1)])


def _workers(measures: Measures) -> Iterator[Metric]:
    workers = [((str(number),), one) for number, one in enumerate(measures.workers)]
    flows = [(label, one.flows) for label, one in workers]
    yield _gauge("worker_flows", "Flows of a worker now.", ("worker",), flows)
    packets = [(label, one.packets) for label, one in workers]
    yield _counter("worker_packets", "Packets that a worker has read from devices.", ("worker",), packets)
    handed_over = [(label, one.handed_over) for label, one in workers]
    yield _counter(
        "worker_handed_over", "Of these, those that another worker has the flow of.", ("worker",), handed_over
    )


def _resources(measures: Measures) -> Iterator[Metric]:
    for kind, states in measures.resources.items():
        noun = f"{kind.replace('-', '_')}s"
        if set(states) <= {""}:
            yield _gauge(noun, f"{noun.replace('_', ' ').capitalize()}.", (), [((), states.get("", 0))])
        else:
            values = [((state,), count) for state, count in sorted(states.items())]
            yield _gauge(noun, f"{noun.capitalize()} by state.", ("state",), values)


def _enis(measures: Measures) -> Iterator[Metric]:
    labels = ("eni", "account")
    enis = _bounded(measures.enis)
    directed = (*labels, "direction")
    for what in ("packets", "bytes"):
        values = [
            ((one.eni, one.account, direction), getattr(one.counters, f"{what}_{direction}"))
            for one in enis
            for direction in _DIRECTIONS
        ]
        yield _counter(f"eni_{what}", f"{what.capitalize()} from and to an ENI's VPC.", directed, values)
    drops = [
        ((one.eni, one.account, reason), count) for one in enis for reason, count in sorted(one.counters.drops.items())
    ]
    yield _counter(
        "eni_drops", "Dropped packets that came from an ENI's VPC or were for it.", (*labels, "reason"), drops
    )
    flows = [((one.eni, one.account), one.flows) for one in enis]
    yield _gauge("eni_flows", "Flows through an ENI now.", labels, flows)
    created = [((one.eni, one.account), one.counters.flows_created) for one in enis]
    yield _counter("eni_flows_created", "Flows that began through an ENI.", labels, created)


def _bounded(enis: Iterable[EniMeasures]) -> list[EniMeasures]:
    every = list(enis)
    rest = every[MOST_ENIS:]
    if not rest:
        return every
    counters = sum((one.counters for one in rest), Counters())
    flows = sum(one.flows for one in rest)
    return [*every[:MOST_ENIS], EniMeasures(eni=OTHERS, account=OTHERS, counters=counters, flows=flows)]


Values = Sequence[tuple[tuple[str, ...], int]]


def _both(arrived: int, sent: int) -> Values:
    return [(("in",), arrived), (("out",), sent)]


def _counter(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    family = CounterMetricFamily(f"hyperplane_{name}", text, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Values) -> Metric:
    family = GaugeMetricFamily(f"hyperplane_{name}", text, labels=labels)
    for given, value in values:
        family.add_metric(given, value)
    return family
