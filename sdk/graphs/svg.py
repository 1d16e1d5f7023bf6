"""A graph as an SVG picture: of itself, without scripts or anything from elsewhere, in light and in dark.

Law: whatever stands in names is text. A state is told by a word and a mark, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from myna.sdk.graphs.layout import HEIGHT, WIDTH, Layout, Point, layout
from myna.sdk.graphs.model import Graph, Kind, Node, State

_MARGIN = 16.0
_HEAD = 56.0
_LABEL, _DETAIL = 22, 26
"""Characters that fit into a box, of its name and of the line below."""

_MARKS = {
    State.WAITING: "·",
    State.READY: "○",
    State.RUNNING: "▸",
    State.QUEUED: "○",
    State.PREFILL: "▸",
    State.DECODE: "▸",
    State.DONE: "✓",
    State.FAILED: "✕",
    State.CANCELLED: "–",
}
# Each state's colour in light and in dark: the Okabe-Ito hues, told apart with every kind of colour vision.
_COLOURS = {
    State.WAITING: ("#8a8f98", "#7d838d"),
    State.READY: ("#5b6470", "#a3abb8"),
    State.RUNNING: ("#0072b2", "#56b4e9"),
    State.QUEUED: ("#5b6470", "#a3abb8"),
    State.PREFILL: ("#b26a00", "#e69f00"),
    State.DECODE: ("#0072b2", "#56b4e9"),
    State.DONE: ("#00785a", "#2fbf96"),
    State.FAILED: ("#c2410c", "#ff8a5c"),
    State.CANCELLED: ("#8a8f98", "#7d838d"),
}
_STYLE = """
.myna{--paper:#fff;--ink:#1d2127;--soft:#5b6470;--line:#c5cad2;--box:#f7f8fa}
@media(prefers-color-scheme:dark){.myna{--paper:#14171c;--ink:#e7e9ee;--soft:#a3abb8;--line:#414853;--box:#1d2128}}
.myna{background:var(--paper);font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.myna .paper{fill:var(--paper)}.myna .edge{fill:none;stroke:var(--line);stroke-width:1.3}
.myna .box{fill:var(--box);stroke:var(--c);stroke-width:1.4}.myna .given .box{stroke-dasharray:4 3}
.myna .bar{fill:var(--c)}.myna text{fill:var(--ink);font-size:12.5px}
.myna .detail{fill:var(--soft);font-size:10.5px}.myna .title{font-size:16px;font-weight:600}
"""


def draw(graph: Graph) -> str:
    """The picture."""
    placed = layout(len(graph.nodes), [(e.source, e.target) for e in graph.edges])
    width = max(placed.width, 320.0) + 2 * _MARGIN
    height = placed.height + _HEAD + 2 * _MARGIN
    return "".join(_parts(graph, placed, width, height))


def _parts(graph: Graph, placed: Layout, width: float, height: float) -> Iterator[str]:
    title = graph.name or graph.session
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="myna" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{_text(f"graph of session {title}: {_summary(graph)}")}">'
    )
    yield f"<style>{_STYLE}{_colours()}</style>"
    yield f'<rect class="paper" width="{width:g}" height="{height:g}"/>'
    yield f'<text class="title" x="{_MARGIN:g}" y="{_MARGIN + 16:g}">{_text(_short(title, 60))}</text>'
    yield f'<text class="detail" x="{_MARGIN:g}" y="{_MARGIN + 34:g}">{_text(_summary(graph))}</text>'
    yield f'<g transform="translate({_MARGIN:g} {_MARGIN + _HEAD:g})">'
    for route in placed.routes:
        yield f'<path class="edge" d="{path(route)}"/>'
    for node, (x, y) in zip(graph.nodes, placed.places, strict=True):
        yield _node(node, x, y)
    yield "</g></svg>"


def _summary(graph: Graph) -> str:
    calls = sum(node.kind is Kind.CALL for node in graph.nodes)
    states = ", ".join(f"{n} {state.value}" for state in State if (n := graph.counts.get(state, 0)))
    more = f"; {graph.left_out} more are not shown" if graph.left_out else ""
    return f"{calls} call{'' if calls == 1 else 's'}{f': {states}' if states else ''}{more}"


def _node(node: Node, x: float, y: float) -> str:
    left, top = x - WIDTH / 2, y - HEIGHT / 2
    kind = "given" if node.kind is Kind.VARIABLE else "call"
    took = f", {node.seconds:.2f} s" if node.seconds is not None else ""
    detail = f"{_MARKS[node.state]} {node.state.value}{took}"
    told = f"{node.label} ({node.id}): {node.state.value}{took}" + (f" on {node.worker}" if node.worker else "")
    return (
        f'<g class="{kind} {node.state.value}"><title>{_text(told)}</title>'
        f'<rect class="box" x="{left:g}" y="{top:g}" width="{WIDTH:g}" height="{HEIGHT:g}" rx="7"/>'
        f'<rect class="bar" x="{left:g}" y="{top:g}" width="5" height="{HEIGHT:g}" rx="2.5"/>'
        f'<text x="{left + 14:g}" y="{top + 18:g}">{_text(_short(node.label, _LABEL))}</text>'
        f'<text class="detail" x="{left + 14:g}" y="{top + 34:g}">{_text(_short(detail, _DETAIL))}</text></g>'
    )


def path(route: Sequence[Point]) -> str:
    """A smooth line from left to right through the points of a route, as the `d` of an SVG path."""
    (x, y), *others = route
    parts = [f"M{x:.1f} {y:.1f}"]
    for a, b in others:
        if b == y:
            parts.append(f"H{a:.1f}")
        else:
            bend = max(abs(a - x) / 2, 12.0)
            parts.append(f"C{x + bend:.1f} {y:.1f} {a - bend:.1f} {b:.1f} {a:.1f} {b:.1f}")
        x, y = a, b
    return "".join(parts)


def _colours() -> str:
    light = "".join(f".myna .{state.value}{{--c:{pair[0]}}}" for state, pair in _COLOURS.items())
    dark = "".join(f".myna .{state.value}{{--c:{pair[1]}}}" for state, pair in _COLOURS.items())
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(text: str) -> str:
    """Text for XML, without the characters that XML can't hold."""
    return escape("".join(c for c in text if c >= " " and not "\ud800" <= c <= "\udfff" and c not in "\ufffe\uffff"))
