"""The graph of one session: variables, calls, and what follows when a variable ends.

Laws:
- A variable ends only when the values' stream says so (`ended`); everything else decides what to ask for.
- What is wanted runs. In an eager session every result is wanted from the start, and only a cancellation or a failure ends that.
  In a lazy one a call is wanted while somebody waits for a result of it, or a wanted call needs one: when the last reader has
  gone, or the last such call has ended otherwise, it stops, and waits until it is wanted again.

The graph knows no workers and no clock. `check()` states its invariants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import structs

from myna.actors.messages import Call, CallId, Cancellation, Failure, Objective, SessionId, Tenant, VarId
from myna.actors.outcomes import OutcomeStatus
from myna.actors.program import inputs_of, outputs_of
from myna.actors.scheduler.cycles import on_cycles, walk_cycle
from myna.actors.scheduler.flaws import cyclic, flaw_of, inherited, used_before
from myna.actors.scheduler.nodes import ENDED, ENDING, READY, RUNNING, WAITING, CallNode, Effects, VarNode
from myna.actors.scheduler.policies.lengths import CHARACTERS, Outline

_VALUE = OutcomeStatus.VALUE


class SessionGraph:
    """All calls and variables of one session."""

    def __init__(
        self,
        *,
        lazy: bool = False,
        tenant: str = "",
        session: str = "",
        priority: int = 0,
        objective: Objective | None = None,
    ) -> None:
        self.lazy = lazy
        self.objective = objective
        self.tenant = Tenant(tenant)
        self.id = SessionId(session)
        self.priority = priority
        self.variables: dict[VarId, VarNode] = {}
        self.calls: dict[CallId, CallNode] = {}
        self.unfinished = 0
        self.born: float | None = None
        """When its first call was submitted."""

    # --- what the log says ---

    def declare(self, variables: Iterable[VarId]) -> None:
        """Variables made by hand become known."""
        for variable in variables:
            self._variable(variable).known = True

    def submit(self, calls: Sequence[Call]) -> Effects:
        """Add calls. One that is invalid ends in a failure of its outputs that names the culprit; the others stand."""
        effects = Effects()
        outlines = self._outlines(calls)
        produced = {v for outline in outlines.values() for v in outline.outputs}
        added = effects.added
        backwards = False
        for call in calls:
            if call.id in self.calls:
                self._repeated(call, effects)
                continue
            outline = outlines[call.id]
            failure = flaw_of(call, outline, self.variables, produced)
            if failure is not None:
                self._refuse(call, failure, effects)
                continue
            added.append(self._add(call, outline))
            for output in outline.outputs:
                if self.variables[output].consumers:
                    backwards = True
        if backwards:  # else every call came before those that consume its results
            self._break_cycles(added, effects)
        for node in added:
            self._settle(node, effects)
        return effects

    def refuse(self, calls: Sequence[Call], failure: Failure) -> Effects:
        """Calls that are not accepted: their outputs fail for this reason."""
        effects = Effects()
        for call in calls:
            if CallId(call.id) not in self.calls:
                self._refuse(call, structs.replace(failure, call=call.id, function=call.function), effects)
        return effects

    def want(self, variables: Iterable[VarId], reader: str = "") -> Effects:
        """`reader` waits for these: in a lazy session their calls, and all that those need, may start. A variable that the log
        has not named yet is declared by it, so that it ends with the session at the latest."""
        effects = Effects()
        for variable in variables:
            node = self._variable(variable)
            node.known = True
            if reader not in node.readers:
                node.readers += (reader,)
            if node.producer is not None and node.status is None:
                self._need(node.producer, effects)
        return effects

    def unwant(self, variables: Iterable[VarId], reader: str = "") -> Effects:
        """`reader` waits for these no more: in a lazy session, calls that nobody needs now wait again."""
        effects = Effects()
        for variable in variables:
            node = self.variables.get(variable)
            if node is not None and reader in node.readers:
                node.readers = tuple(r for r in node.readers if r != reader)
                if node.producer is not None:
                    self._withdraw([node.producer], effects)
        return effects

    def cancel(self, calls: Iterable[CallId], reason: str, *, upstream: bool = False) -> Effects:
        """Cancel calls; what needs their results is cancelled when the stream has taken the cancellations. With `upstream` also
        those that made inputs for nobody else, and whose results nobody waits for."""
        effects = Effects()
        above: list[CallNode] = []
        for call_id in calls:
            call = self.calls.get(call_id)
            if call is not None and call.state not in (ENDING, ENDED):
                self._end(call, Cancellation(reason=reason, call=call.id), effects)
                above += self.producers(call) if upstream else ()
        while above:
            call = above.pop()
            if call.state not in (ENDING, ENDED) and not self._serves(call):
                self._end(call, Cancellation(reason=f"nobody needs it now: {reason}", call=call.id), effects)
                above += self.producers(call)
        return effects

    def close(self, reason: str) -> Effects:
        """Cancel every call that is unfinished and every variable that nobody has set."""
        effects = self.cancel([c.id for c in self.calls.values()], reason)
        doomed = {variable for variable, _ in effects.doomed}
        for node in self.variables.values():
            if node.status is None and node.id not in doomed and node.producer is None:
                effects.doomed.append((node.id, Cancellation(reason=reason)))
        return effects

    # --- what the values' stream says ---

    def ended(self, variable: VarId, status: OutcomeStatus, failure: Failure | None = None) -> Effects:
        """A variable has its outcome. Idempotent."""
        effects = Effects()
        node = self._variable(variable)
        if node.status is not None:
            return effects
        node.status, node.failure = status, failure
        if node.producer is not None:
            self._output_ended(node.producer, effects)
        for call in node.consumers:
            self._input_ended(call, node, effects)
        return effects

    # --- what workers say ---

    def fail(self, call: CallNode, failure: Failure) -> Effects:
        """A call can't be computed: its outputs that have no outcome yet fail."""
        effects = Effects()
        if call.state not in (ENDING, ENDED):
            self._end(call, failure, effects)
        return effects

    # --- what surrounds a call ---

    def producers(self, call: CallNode) -> list[CallNode]:
        """The calls, each once, that make its inputs and have not ended."""
        found: list[CallNode] = []
        for variable in call.inputs:
            producer = self.variables[variable].producer
            if producer is not None and producer.unended and producer not in found:
                found.append(producer)
        return found

    def consumers(self, call: CallNode) -> list[CallNode]:
        """The calls that its results go into."""
        return [consumer for output in call.outputs for consumer in self.variables[output].consumers]

    # --- inside ---

    def _variable(self, variable: VarId) -> VarNode:
        node = self.variables.get(variable)
        if node is None:
            node = self.variables[variable] = VarNode(variable)
        return node

    def _outlines(self, calls: Sequence[Call]) -> dict[str, Outline]:
        """Of each call that is new; of several with one id, of the first."""
        outlines: dict[str, Outline] = {}
        for call in calls:
            if call.id not in self.calls and call.id not in outlines:
                outlines[call.id] = Outline(call)
        return outlines

    def _repeated(self, call: Call, effects: Effects) -> None:
        """A call whose id was used before: an entry written twice, or another call, whose outputs nobody would produce."""
        if any(self._variable(v).producer is None for v in outputs_of(call)):
            self._refuse(call, used_before(call), effects, CallId(f"{call.id} again {len(self.calls)}"))

    def _refuse(self, call: Call, failure: Failure, effects: Effects, name: CallId | None = None) -> None:
        mine = tuple(v for v in dict.fromkeys(outputs_of(call)) if self._variable(v).producer is None)
        node = CallNode(name or CallId(call.id), None, call.function, mine, 0, 0, session=self)
        self.calls[node.id] = node
        self._own(node)
        if node.unended:
            self._end(node, failure, effects)
        else:
            node.state = ENDED

    def _own(self, node: CallNode) -> None:
        for output in node.outputs:
            variable = self.variables.get(output)
            if variable is None:
                variable = self.variables[output] = VarNode(output)
            variable.known, variable.producer = True, node
            if variable.status is None:
                node.unended += 1
        if node.unended:
            self.unfinished += 1

    def _add(self, call: Call, outline: Outline) -> CallNode:
        node = CallNode(CallId(call.id), call, call.function, outline.outputs, 0, 0, outline.inputs, session=self)
        node.constant, node.limit = outline.characters / CHARACTERS, outline.limit
        self.calls[node.id] = node
        self._own(node)
        for variable in outline.inputs:
            source = self._variable(variable)
            source.consumers.append(node)
            if source.status is not _VALUE:
                node.missing += 1
        if node.unended == 0:  # set by hand, all of it
            node.state, node.spec, node.inputs = ENDED, None, ()
        return node

    def _break_cycles(self, added: Sequence[CallNode], effects: Effects) -> None:
        """Fail the added calls that need their own result. Removing them breaks every cycle, since the graph had none before."""
        on_cycle = on_cycles({c: self.consumers(c) for c in self._reach(added)})
        for node in added:
            if node in on_cycle and node.state is WAITING:
                self._end(node, cyclic(node, walk_cycle(node, on_cycle)), effects)

    def _reach(self, start: Sequence[CallNode]) -> set[CallNode]:
        """All calls downstream of `start`. Cheap for most: a new output has no consumers but those of its own entry."""
        seen = set(start)
        stack = list(start)
        while stack:
            for consumer in self.consumers(stack.pop()):
                if consumer not in seen:
                    seen.add(consumer)
                    stack.append(consumer)
        return seen

    def _settle(self, node: CallNode, effects: Effects) -> None:
        if node.spec is None or node.state is not WAITING:
            return
        for variable in node.inputs:
            source = self.variables[variable]
            if source.status in (OutcomeStatus.FAILURE, OutcomeStatus.CANCELLED):
                self._end(node, inherited(source), effects)
                return
        if not self.lazy:
            node.wanted = True
            self._make_ready(node, effects)
        elif self._serves(node):
            self._need(node, effects)

    def _need(self, call: CallNode, effects: Effects) -> None:
        """A call is wanted, and with it all that it needs."""
        stack = [call]
        while stack:
            call = stack.pop()
            if call.wanted or call.spec is None or call.state is ENDING:
                continue
            call.wanted = True
            self._make_ready(call, effects)
            for variable in call.inputs:
                node = self.variables[variable]
                if node.producer is not None and node.status is None:  # of several outputs this one may be there
                    stack.append(node.producer)

    def _serves(self, call: CallNode) -> bool:
        """Whether somebody waits for a result of the call, or a wanted call that is not ending needs one."""
        for output in call.outputs:
            variable = self.variables[output]
            if variable.status is not None:
                continue
            if variable.readers or any(c.wanted and c.unended and c.state is not ENDING for c in variable.consumers):
                return True
        return False

    def _withdraw(self, calls: list[CallNode], effects: Effects) -> None:
        """Of a lazy session: calls that nobody needs any more wait again, and so do those that only they needed."""
        stack = calls if self.lazy else []
        while stack:
            call = stack.pop()
            if not call.wanted or not call.unended or call.state is ENDING or self._serves(call):
                continue
            call.wanted = False
            if call.state is not WAITING:
                effects.withdrawn.append(call)
                call.state, call.queued, call.aged = WAITING, 0, 0
            stack += self.producers(call)

    def _make_ready(self, call: CallNode, effects: Effects) -> None:
        if call.state is WAITING and call.missing == 0 and call.wanted and call.unended:
            call.state = READY
            effects.ready.append(call)

    def _input_ended(self, call: CallNode, source: VarNode, effects: Effects) -> None:
        if source.status is _VALUE:
            call.missing -= 1
            self._make_ready(call, effects)
        elif call.state is WAITING:
            self._end(call, inherited(source), effects)

    def _output_ended(self, call: CallNode, effects: Effects) -> None:
        call.unended -= 1
        if call.unended == 0 and call.state is not ENDED:
            self._finish(call, effects)
        elif self.lazy and call.unended:
            self._withdraw([call], effects)

    def _finish(self, call: CallNode, effects: Effects) -> None:
        if call.state is RUNNING:
            effects.ended.append(call)
        call.state = ENDED
        if self.lazy:
            self._withdraw(self.producers(call), effects)
        call.spec = call.outcome = call.need = None
        call.inputs = ()
        call.queued = call.aged = 0
        effects.finished.append(call)
        self.unfinished -= 1

    def _end(self, call: CallNode, outcome: Failure | Cancellation, effects: Effects) -> None:
        if call.state is RUNNING:
            effects.halted.append(call)
        call.state, call.outcome, call.queued, call.aged = ENDING, outcome, 0, 0
        effects.ending.append(call)
        effects.doomed += [(o, outcome) for o in call.outputs if self.variables[o].status is None]
        if self.lazy:
            self._withdraw(self.producers(call), effects)

    def check(self) -> None:
        """Raise AssertionError if the graph contradicts itself."""
        live = 0
        for call in self.calls.values():
            assert call.aged == 0 or call.state is READY, f"{call.id} is {call.state}, and waits"
            unended = sum(self.variables[o].status is None for o in call.outputs)
            assert call.unended == unended, (
                f"{call.id}: counts {call.unended} outputs without an outcome, has {unended}"
            )
            assert (call.state is ENDED) == (unended == 0), f"{call.id}: {call.state}, {unended} outputs open"
            live += unended > 0
            if self.lazy and unended and call.state is not ENDING:
                assert call.wanted == self._serves(call), (
                    f"{call.id}: wanted {call.wanted}, needed {self._serves(call)}"
                )
                assert call.wanted or call.state is WAITING, f"{call.id}: {call.state}, and nobody wants it"
            assert (call.worker is not None) == (call.state is RUNNING), f"{call.id}: {call.state} on {call.worker}"
            if call.spec is not None and call.state in (WAITING, READY, RUNNING):
                missing = sum(self.variables[v].status is not _VALUE for v in set(inputs_of(call.spec)))
                assert call.missing == missing, (
                    f"{call.id}: counts {call.missing} inputs without a value, has {missing}"
                )
                assert call.state is WAITING or missing == 0, f"{call.id}: {call.state} without its inputs"
        assert live == self.unfinished, f"{self.unfinished} unfinished calls counted, {live} found"
