"""Why a figure of ours is worse than another scheduler's: which policy does it, and what is had for it.

Law: nothing is judged here that was not run. A loss is a median over seeds that is worse by more than `LEAST`; the policy that
does most of it is the one without which the figure is best; and what that policy is worth is the mean completion time without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

LEAST = 1.03
RIVALS = ("round robin", "least loaded", "prefix-aware")
WHY = {
    "objectives": "what nobody waits for gives way to what somebody waits for",
    "groups": "calls of a group count by the end of the last of them",
    "applications": "what is nearly done goes first, so that what is largest ends last",
    "prefixes": "calls go where their prefix is, though another engine has less to do",
    "capacity": "engines of calls whose tokens are waited for take few others, and prompts wait until an engine can begin them",
    "interference": "prompts that can wait are taken slowly beside many calls that are waited for",
    "residents": "contexts wait for room to stay",
    "retention": "memory is kept for calls to come",
    "early": "prefixes are computed before they are asked for",
    "fairness": "tenants have equal shares, whatever would be quickest for all",
}
BOUND = (
    "no order and no placement does better than the bound for engines of one pace (simulation/bounds.py); where every length is "
    "known nothing else is different from ours"
)


def note(better: str, figures: Mapping[str, Sequence[float]], means: Mapping[str, Sequence[float]]) -> str:
    """One line, or nothing where ours does not lose. `figures` and the mean completion times are by arm, one a seed."""
    best = min if better == "lower" else max
    rival = best(RIVALS, key=lambda arm: median(figures[arm]))
    ratios = sorted(
        (ours / theirs if better == "lower" else theirs / ours) if ours and theirs else 1.0
        for ours, theirs in zip(figures["ours"], figures[rival], strict=True)
    )
    if median(ratios) <= LEAST:
        return ""
    told = f"worse than {rival}: {', '.join(f'{r:.2f}' for r in ratios)} times over the seeds"
    if ratios[0] <= 1.0:
        told += ", which disagree"
    switches = {arm.removeprefix("without "): median(of) for arm, of in figures.items() if arm.startswith("without ")}
    policy = best(switches, key=lambda name: switches[name])
    ours = median(figures["ours"])
    if not (switches[policy] < ours if better == "lower" else switches[policy] > ours):
        return f"{told}; no policy alone does it"
    had = f"mean completion {median(means['ours']):.3g} s instead of {median(means[f'without {policy}']):.3g}"
    return f"{told}; most by `{policy}` ({switches[policy]:.3g} without it, {had} with it): {WHY[policy]}"
