"""Counters and histograms that cost next to nothing to count into, and are put into Prometheus' form when they are scraped.

`prometheus_client`'s own take a lock, and look labels up, at each count: a few microseconds, of which a call would pay dozens.
Law: one thread counts; a scrape, in another, sees each number whole, and may see two numbers a moment apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Tally(Collector):
    """A counter for each tuple of labels that was counted."""

    def __init__(self, registry: CollectorRegistry, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self._name, self._help, self.labels = name, help, labels
        self._counted: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        registry.register(self)

    def add(self, amount: float, labels: tuple[str, ...] = ()) -> None:
        """Count; `amount` is not negative."""
        self._counted[labels] = self._counted.get(labels, 0.0) + amount

    def reach(self, total: float, labels: tuple[str, ...] = ()) -> None:
        """What somebody else counts stands at `total`."""
        self._counted[labels] = total

    def describe(self) -> Iterator[Metric]:
        """What it is, without numbers."""
        yield CounterMetricFamily(self._name, self._help, labels=self.labels)

    def collect(self) -> Iterator[Metric]:
        """The numbers."""
        family = CounterMetricFamily(self._name, self._help, labels=self.labels)
        for labels, counted in list(self._counted.items()):
            family.add_metric(labels, counted)
        yield family


class Times(Collector):
    """A histogram without labels. `bounds`: of its buckets, the last of which has none."""

    def __init__(self, registry: CollectorRegistry, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name, self._help, self._bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """One sample; below 0, as clocks that are set may tell it, it is 0."""
        if value < 0.0:
            value = 0.0
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def describe(self) -> Iterator[Metric]:
        """What it is, without numbers."""
        yield HistogramMetricFamily(self._name, self._help)

    def collect(self) -> Iterator[Metric]:
        """The numbers."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(list(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)
