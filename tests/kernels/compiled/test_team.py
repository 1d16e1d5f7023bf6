import threading

import numpy as np
import pytest

from myna.kernels.compiled.emit import compiled
from myna.kernels.compiled.lanes import load_int
from myna.kernels.compiled.team import Team, atomic_add, await_step, begin_step, deal, meet, share

PHASES = 200


@compiled
def _phases(counts: int, team: int, threads: int) -> int:
    """Every thread adds to the count of each phase, and looks at it after the meeting. Returns phases seen incomplete."""
    wrong = 0
    for phase in range(PHASES):
        atomic_add(counts + phase * 8, 1)
        meet(team, threads)
        if load_int(counts + phase * 8) % threads:
            wrong += 1
        meet(team, threads)
    return wrong


@compiled
def _deal_all(taken: int, pieces: int, team: int, threads: int) -> None:
    piece = deal(team)
    while piece < pieces:
        atomic_add(taken + piece * 8, 1)
        piece = deal(team)
    meet(team, threads)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_nobody_passes_a_meeting_before_all_have_come(threads: int) -> None:
    counts, wrong = np.zeros(PHASES, np.int64), np.zeros(1, np.int64)
    where, seen = counts.ctypes.data, wrong.ctypes.data

    @compiled
    def step(team: int) -> None:
        atomic_add(seen, _phases(where, team, threads))

    team = _team(threads, step)
    for _ in range(3):
        begin_step(team.address)
        step(team.address)
    team.close()
    assert counts.tolist() == [3 * threads] * PHASES
    assert wrong[0] == 0


def test_every_piece_is_dealt_once_in_each_step() -> None:
    threads, pieces = 3, 500
    taken = np.zeros(pieces, np.int64)
    where = taken.ctypes.data

    @compiled
    def step(team: int) -> None:
        _deal_all(where, pieces, team, threads)

    team = _team(threads, step)
    for _ in range(2):
        begin_step(team.address)
        step(team.address)
    team.close()
    assert taken.tolist() == [2] * pieces


def test_a_team_that_is_closed_or_forgotten_leaves_no_thread() -> None:
    before = threading.active_count()
    team = _team(3, compiled(_nothing))
    assert threading.active_count() == before + 2
    team.close()
    assert threading.active_count() == before
    team = _team(2, compiled(_nothing))
    del team
    assert threading.active_count() == before


@pytest.mark.parametrize(("count", "threads"), [(7, 3), (2, 5), (0, 2), (64, 1)])
def test_shares_are_even_and_leave_nothing_out(count: int, threads: int) -> None:
    shares = [range(*share(count, thread, threads)) for thread in range(threads)]
    assert [piece for part in shares for piece in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def _nothing(_team: int) -> None:
    pass


def _team(threads: int, step: object) -> Team:
    @compiled
    def member(team: int, _thread: int) -> None:
        number = 1
        while await_step(team, number):
            step(team)  # type: ignore[operator]
            number += 1

    return Team(threads, member)
