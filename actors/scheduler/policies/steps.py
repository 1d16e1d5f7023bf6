"""How long a step of an engine takes, learned from its beats.

Law: no constants of any machine. A window's mean step is `base + slope x (tokens drawn a step) + prefill x (prompt tokens a
step)`; the three are fitted by recursive least squares that forgets. Before the first beats the prior below stands.
"""

from __future__ import annotations

from collections.abc import Mapping

FORGET = 0.97
"""Weight of all earlier windows at each new one."""
MOSTLY = 0.8
"""Part of a window that must have gone into prompts for it to tell how fast they are computed beside decoding. (With half of it,
steps without prompts were charged to them: an engine was thought to be busy for longer than it was, and ran out of prompts.)"""
_PRIOR = (0.01, 1e-4, 5e-5)
_SPREAD = (1e-3, 1e-6, 1e-7)
"""Variances of the prior: how readily each constant follows the first measurements, relative to `_NOISE`."""
_NOISE = 1e-8

FIGURES = ("steps", "step_seconds", "computed_tokens", "drawn_tokens")
"""What is read of a beat's load: running totals."""


class StepModel:
    """The fitted times of one engine, in seconds. `prompt_seconds`: a prompt token's, when prompts wait and steps are shared with
    decoding."""

    __slots__ = ("_covariance", "_last", "_theta", "base", "measured", "prefill", "prompt_seconds", "slope")

    def __init__(self) -> None:
        self._theta = list(_PRIOR)
        self._covariance = [[_SPREAD[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
        self._last: tuple[float, ...] | None = None
        self.measured = False
        self.base, self.slope, self.prefill = _PRIOR
        self.prompt_seconds = self.prefill

    @property
    def alone(self) -> float:
        """A step of one sequence."""
        return self.step(1.0)

    def step(self, drawn: float, prompt: float = 0.0) -> float:
        """A step that draws so many tokens and computes so many prompt tokens."""
        return self.base + self.slope * drawn + self.prefill * prompt

    def hear(self, load: Mapping[str, float]) -> None:
        """Learn from the totals of a beat. An engine that was restarted counts from nothing."""
        if not all(name in load for name in FIGURES):
            return
        totals = tuple(load[name] for name in FIGURES)
        last, self._last = self._last, totals
        if last is None or totals[0] <= last[0]:
            return
        steps, seconds, computed, drawn = (new - old for new, old in zip(totals, last, strict=True))
        prompt = max(computed - drawn, 0.0)
        if seconds > 0 and drawn >= 0:
            self.observe(drawn / steps, prompt / steps, seconds / steps)
            if prompt * self.prefill > MOSTLY * seconds:
                self.prompt_seconds += 0.3 * (seconds / prompt - self.prompt_seconds)
            self.prompt_seconds = min(max(self.prompt_seconds, self.prefill), self.prefill / MOSTLY)

    def observe(self, drawn: float, prompt: float, seconds: float) -> None:
        """One window's means a step."""
        x = (1.0, drawn, prompt)
        px = [sum(row[j] * x[j] for j in range(3)) for row in self._covariance]
        gain = _NOISE + sum(x[i] * px[i] for i in range(3))
        error = seconds - sum(self._theta[i] * x[i] for i in range(3))
        for i in range(3):
            self._theta[i] += px[i] * error / gain
            for j in range(3):
                self._covariance[i][j] -= px[i] * px[j] / gain
        if all(
            self._covariance[i][i] < FORGET * _SPREAD[i] for i in range(3)
        ):  # it never knows less than the prior did
            self._covariance = [[p / FORGET for p in row] for row in self._covariance]
        base, slope, prefill = self._theta
        self.base, self.slope, self.prefill = max(base, 0.0), max(slope, 0.0), max(prefill, 1e-9)
        self.measured = True
