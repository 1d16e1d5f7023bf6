"""A program of Parrot's own client. Run with its source on the path: `parrot_program.py ADDRESS`; prints what it got as JSON.

Its annotations are read as objects, so they must not become texts.
"""

import asyncio
import json
import logging
import sys
from typing import Any

from parrot import P

logging.disable(logging.CRITICAL)
vm = P.VirtualMachine(core_http_addr=sys.argv[1], mode="debug")
GREEDY = P.SamplingConfig(temperature=0.0, max_gen_length=3)
SAMPLED = P.SamplingConfig(temperature=0.8, top_p=0.9, max_gen_length=2, stop_str="never")
got: dict[str, Any] = {}


@P.semantic_function(conversation_template=P.vicuna_template)
def joke(topic: P.Input, count: int, joke: P.Output(GREEDY), why: P.Output(SAMPLED)):
    """Tell me {{count}} jokes about {{topic}}: {{joke}}. They are funny because {{why}}"""


@P.semantic_function(formatter=P.allowing_newline, remove_pure_fill=False, cache_prefix=False)
def shorter(text: P.Input, short: P.Output(GREEDY)):
    """Say it shorter:
    {{text}}
    {{short}}
    That was it.
    """


def main() -> None:
    first, why = joke("hens", 2)
    later, mine = P.variable("later"), P.variable("mine")
    chained = shorter(shorter(first))
    waiting = shorter(later)
    shorter("a text", short=mine)
    later.set("set after the call")
    got["outputs"] = [first.get(P.PerformanceCriteria.LATENCY), why.get(P.PerformanceCriteria.TTFT)]
    got["chained"], got["waiting"] = chained.get(), waiting.get(P.PerformanceCriteria.TPOT)
    got["preallocated"] = mine.get(P.PerformanceCriteria.THROUGHPUT)
    defined = vm.define_function(
        None,
        "{{x}} and {{y}}",
        [P.Parameter("x", P.ParamType.INPUT_LOC), P.Parameter("y", P.ParamType.OUTPUT_LOC, GREEDY)],
    )
    got["defined"] = defined(7).get()


async def asynchronous() -> None:
    texts = [await shorter.ainvoke(text=f"part {i}") for i in range(3)]
    got["async"] = await asyncio.gather(*(text.aget(P.PerformanceCriteria.LATENCY) for text in texts))


def wrong() -> None:
    function = vm.define_function(
        "f", "Say {{y}}", [P.Parameter("y", P.ParamType.OUTPUT_LOC, GREEDY)], models=["vicuna"], try_register=False
    )
    try:
        function()
    except RuntimeError as error:
        got["refused"] = str(error)


for program in (main, asynchronous, wrong):
    vm.run(program)
    got["ended"] = not vm.session_registered
print(json.dumps(got))
