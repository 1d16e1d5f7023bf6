"""The step-time function of a modelled engine, fitted to measured steps, and how far it is off on others.

Law: what the fit has seen is no evidence. Every fit names points that it did not see, and its errors on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.benchmarks.simulation.engine import EngineModel


@dataclass(frozen=True)
class Point:
    """A measured step, or the mean of several: `sequences` that draw a token each, KV `tokens` that are read, what is shared
    once; `prompt` tokens computed beside them. `prompt_steps`: in how many steps a whole prompt was computed."""

    name: str
    seconds: float
    sequences: float = 0.0
    tokens: float = 0.0
    prompt: float = 0.0
    prompt_steps: float = 1.0
    seen: bool = True

    @property
    def factors(self) -> tuple[float, float, float, float]:
        """What base, slope, kv and prefill are multiplied with."""
        return (self.prompt_steps, self.sequences, self.tokens, self.prompt)


def fit(points: Sequence[Point], source: str) -> EngineModel:
    """The least relative errors on the points that may be seen. No constant is negative: one that would be counts nothing."""
    seen = [p for p in points if p.seen]
    factors = np.array([[f / p.seconds for f in p.factors] for p in seen])
    free = list(range(4))
    while True:
        found, *_ = np.linalg.lstsq(factors[:, free], np.ones(len(seen)), rcond=None)
        if (found >= 0).all():
            break
        free.pop(int(found.argmin()))
    constants = [0.0] * 4
    for index, value in zip(free, found, strict=True):
        constants[index] = float(value)
    base, slope, kv, prefill = constants
    return EngineModel(base, slope, kv, prefill, source=source)


def refit(model: EngineModel, points: Sequence[Point], source: str) -> EngineModel:
    """The same engine measured again: its line, and what reading KV adds to its measured steps. The rest stays."""
    line = fit(points, source)
    model = replace(model, base=line.base, slope=line.slope, kv=line.kv, prefill=line.prefill, source=source)
    if not model.steps:
        return model
    reading = [p for p in points if p.seen and p.tokens]
    dry = np.array([model.step(int(p.sequences), 0.0, p.prompt) / p.seconds for p in reading])
    wet = np.array([p.tokens / p.seconds for p in reading])
    return replace(model, kv=float(wet @ (1.0 - dry) / (wet @ wet)))


def errors(model: EngineModel, points: Sequence[Point]) -> dict[str, float]:
    """Relative errors of the model, by point."""
    return {p.name: _seconds(model, p) / p.seconds - 1.0 for p in points}


def _seconds(model: EngineModel, point: Point) -> float:
    step = model.step(int(point.sequences), point.tokens, point.prompt / point.prompt_steps)
    return point.prompt_steps * step


def points_of(rows: Sequence[Mapping[str, Any]]) -> list[Point]:
    """The points of a record of `gpu_engine.py`: decoding and prompts are seen, decoding under a shared prefix is not."""
    steps = {r["case"]: r["value"] / 1e3 for r in rows if r["metric"] == "step"}
    rates = {r["case"]: r["value"] for r in rows if r["metric"] == "prefill"}
    found = []
    for batch, context in ((1, 128), (64, 512), (256, 256)):
        name = f"decode B{batch}, U{context}"
        found.append(Point(name, steps[name], batch, batch * (context + DRAWN)))
    for prefix, own, batch in ((2048, 256, 16), (6000, 500, 32), (8192, 128, 64), (32768, 512, 32)):
        name = f"shared {prefix}, {own}, {batch}"
        found.append(Point(name, steps[name], batch, prefix + batch * (own + DRAWN), seen=False))
    for prompt in (4096, 16384):
        name = f"prefill {prompt}"
        found.append(Point(name, prompt / rates[name], prompt=prompt, prompt_steps=-(-prompt // CHUNK)))
    return found


DRAWN = 96.0
"""Tokens that a sequence had drawn on average: steps are measured from the 32nd to the 160th."""
CHUNK = 16_896
"""Prompt tokens of a step there."""
