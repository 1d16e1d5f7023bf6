from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from myna.actors.messages import CallView, GraphView, VariableView
from myna.sdk.graphs.formats import as_json, dot
from myna.sdk.graphs.model import Edge, Graph, Kind, Node, State, of_view
from myna.sdk.graphs.svg import draw

VIEW = GraphView(
    session="s1",
    name="demo",
    calls=(
        CallView(id="c1", function="first", state="ended", inputs=("given",), outputs=("a", "b")),
        CallView(id="c2", function="second", state="running", inputs=("a",), outputs=("c",), worker="e1", seconds=2.5),
        CallView(id="c3", function="", state="waiting", inputs=("b", "c"), outputs=("d",)),
        CallView(id="c4", function="bad", state="ended", inputs=("a",), outputs=("x", "y")),
    ),
    variables=(
        VariableView(id="given", state="value"),
        VariableView(id="a", state="value", producer="c1"),
        VariableView(id="b", state="value", producer="c1"),
        VariableView(id="c", state="pending", producer="c2"),
        VariableView(id="d", state="pending", producer="c3"),
        VariableView(id="x", state="failure", producer="c4"),
        VariableView(id="y", state="value", producer="c4"),
    ),
)


def test_a_graph_has_its_calls_and_what_is_set_by_hand_joined_by_variables() -> None:
    graph = of_view(VIEW)
    assert [(n.kind, n.label, n.state) for n in graph.nodes] == [
        (Kind.VARIABLE, "given", State.DONE),
        (Kind.CALL, "first", State.DONE),
        (Kind.CALL, "second", State.RUNNING),
        (Kind.CALL, "c3", State.WAITING),
        (Kind.CALL, "bad", State.FAILED),
    ]
    joined = {(graph.nodes[e.source].id, graph.nodes[e.target].id, e.variable) for e in graph.edges}
    assert joined == {
        ("given", "c1", "given"),
        ("c1", "c2", "a"),
        ("c1", "c3", "b"),
        ("c2", "c3", "c"),
        ("c1", "c4", "a"),
    }
    assert graph.counts == {State.DONE: 1, State.RUNNING: 1, State.WAITING: 1, State.FAILED: 1}


@pytest.mark.parametrize(
    ("phase", "state"), [("queued", State.QUEUED), ("prefill", State.PREFILL), ("storing", State.DECODE)]
)
def test_a_running_call_is_as_far_as_its_engine_says(phase: str, state: State) -> None:
    graph = of_view(VIEW, {"c2": phase}.get)
    assert graph.nodes[2].state is state


HOSTILE = '<script>alert("&1")</script>\x00\ud800"\\\n'


def hostile() -> Graph:
    nodes = (
        Node(Kind.CALL, "c", HOSTILE, State.DONE, (HOSTILE,), HOSTILE),
        Node(Kind.VARIABLE, "v", "v", State.FAILED),
    )
    return Graph("s", HOSTILE, nodes, (Edge(1, 0, HOSTILE),))


def test_a_picture_is_well_formed_and_holds_names_as_text_alone() -> None:
    root = ElementTree.fromstring(draw(hostile()))
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names == {"svg", "style", "rect", "text", "g", "path", "title"}
    assert not [a for element in root.iter() for a in element.attrib if a.startswith("on")]
    assert any('<script>alert("&1")' in (element.text or "") for element in root.iter())
    style = next(element.text or "" for element in root.iter() if element.tag.endswith("style"))
    assert "prefers-color-scheme:dark" in style


def test_every_state_has_a_word_a_mark_and_a_colour_in_the_picture() -> None:
    graph = Graph("s", "all", tuple(Node(Kind.CALL, s, s, s) for s in State), ())
    picture = draw(graph)
    for state in State:
        assert f" {state.value}</text>" in picture
        assert picture.count(f".myna .{state.value}{{--c:") == 2


def test_an_empty_graph_can_be_drawn() -> None:
    assert "0 calls" in draw(Graph("s", "", (), ()))


def test_dot_quotes_what_it_must_and_json_says_all() -> None:
    text = dot(hostile())
    assert text.count("\n") == 6
    assert '\\"&1\\"' in text
    told = json.loads(as_json(of_view(VIEW)))
    assert [n["id"] for n in told["nodes"]] == ["given", "c1", "c2", "c3", "c4"]
    assert told["edges"][0] == {"source": 0, "target": 1, "variable": "given"}
