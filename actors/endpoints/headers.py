"""What an endpoint's headers say of its rate limits. Pure; what can't be understood is as good as not there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def retry_after(headers: Mapping[str, str], wall: float) -> float | None:
    """Seconds after which to come again: `retry-after-ms`, or `Retry-After` in seconds or as a date. `wall`: seconds since the
    epoch."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _number(given)
    if seconds is not None or given is None:
        return seconds
    try:
        moment = parsedate_to_datetime(given)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.fromtimestamp(wall, moment.tzinfo)).total_seconds())


def exhausted(headers: Mapping[str, str]) -> float | None:
    """Seconds for which nothing more is allowed, if requests or tokens are used up: until so much of the allowance has come back
    as one request, or a hundredth of the tokens."""
    pauses = []
    for what, share in (("requests", None), ("tokens", 0.01)):
        limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
        left = _number(headers.get(f"x-ratelimit-remaining-{what}"))
        reset = _duration(headers.get(f"x-ratelimit-reset-{what}"))
        if left is None or reset is None:
            continue
        needed = 1.0 if share is None or limit is None else share * limit
        if left < needed:
            rate = (limit - left) / reset if limit is not None and limit > left and reset > 0 else None
            pauses.append(reset if rate is None else min(reset, (needed - left) / rate))
    return max(pauses, default=None)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def _duration(text: str | None) -> float | None:
    """Seconds of `20ms`, `1s`, `6m0s`, or a bare number."""
    if text is None or (bare := _number(text)) is not None:
        return None if text is None else bare
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
