from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from myna.actors.messages import Input, Message, ModelCall, Output, Text, WorkerId
from myna.actors.scheduler.policies.prefixes import HOLDERS, Belief, Boundary, Chain, chain_of, chained, head_of

LONG = "a system prompt that everybody shares, of some length. " * 4


def program(*parts: str, role: str | None = None) -> ModelCall:
    """A call whose parts are constants (`=text`), inputs, or outputs (`>name`)."""
    segments = [
        Text(text=p[1:])
        if p.startswith("=")
        else Output(variables=(p[1:],))
        if p.startswith(">")
        else Input(variables=(p,))
        for p in parts
    ]
    return ModelCall(id="c", messages=(Message(segments=tuple(segments), role=role),))


def chain(*parts: str, salt: str = "t", **known: str) -> Chain:
    return chain_of(program(*parts), salt, lambda v: (known.get(v, ("identity", v)), 50.0))


def shared(a: Chain, b: Chain) -> float:
    names = {boundary.name for boundary in a.boundaries}
    return max((x.tokens for x in b.boundaries[: b.prompt] if x.name in names), default=0.0)


def test_siblings_share_their_constant_prefix_before_any_value_exists() -> None:
    a, b = chain(f"={LONG}", "x", ">o"), chain(f"={LONG}", "y", ">p")
    assert shared(a, b) == len(LONG) / 4
    assert shared(a, chain("=" + LONG.upper(), "x", ">o")) == 0.0


def test_tenants_share_nothing() -> None:
    assert shared(chain(f"={LONG}", ">o"), chain(f"={LONG}", ">o", salt="other")) == 0.0


def test_a_text_set_by_hand_in_two_sessions_is_one_prefix_when_it_is_the_same() -> None:
    a, b = chain("x", f"={LONG}", ">o", x="digest"), chain("y", f"={LONG}", ">p", y="digest")
    assert shared(a, b) == b.tokens
    assert shared(a, chain("y", f"={LONG}", ">p", y="another")) == 0.0


def test_the_next_turn_of_a_conversation_begins_with_the_whole_of_the_turn_before() -> None:
    first = chain(f"={LONG}", "user1", ">reply1")
    second = chain(f"={LONG}", "user1", "reply1", "user2", ">reply2")
    assert shared(first, second) == first.total
    assert second.tokens == first.total + 50


def test_the_head_of_a_prompt_is_what_stands_before_its_first_variable() -> None:
    for parts, tokens in (
        ((f"={LONG}", "x", f"={LONG}", ">o"), len(LONG) / 4),
        ((f"={LONG}", f"={LONG}", "x", ">o"), len(LONG) / 2),
        (("x", f"={LONG}", ">o"), 0.0),
        (("=short", "x", ">o"), 0.0),
    ):
        assert head_of(chain(*parts), program(*parts)).tokens == tokens


def test_a_role_is_part_of_the_prefix() -> None:
    plain = chain_of(program(f"={LONG}", ">o"), "t", lambda v: (v, 1.0))
    system = chain_of(program(f"={LONG}", ">o", role="system"), "t", lambda v: (v, 1.0))
    assert shared(plain, system) == 0.0


workers = st.sampled_from([WorkerId(f"w{n}") for n in range(HOLDERS + 3)])


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    path = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    names = [hash(tuple(path[: n + 1])) for n in range(len(path))]
    return chained(tuple(Boundary(name, 40.0 * (n + 1)) for n, name in enumerate(names)), len(path))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("plef"), workers, chains(), st.integers(0, 400)), max_size=40))
def test_whatever_is_placed_and_evicted_the_books_agree_and_memory_is_respected(
    steps: list[tuple[str, WorkerId, Chain, int]],
) -> None:
    belief = Belief()
    for what, worker, path, number in steps:
        match what:
            case "p":
                belief.placed(path, worker, 200 + number)
                assert belief._tokens[worker] <= 200 + number
            case "e":
                belief.evicted(worker, number)
            case "f":
                belief.forget(worker)
                assert belief.matched(path, worker) == 0.0
        belief.check()
        for holder, matched in belief.holders(path, 3, 0.0):
            assert matched == belief.matched(path, holder)


def test_the_least_recently_used_prefix_is_forgotten_first() -> None:
    belief, worker = Belief(), WorkerId("w")
    first, second = (chained((Boundary(n, 100.0),), 1) for n in (1, 2))
    belief.placed(first, worker, 1000)
    belief.placed(second, worker, 1000)
    belief.placed(first, worker, 1000)
    belief.evicted(worker, 1.0)
    assert belief.matched(first, worker) == 100.0
    assert belief.matched(second, worker) == 0.0
