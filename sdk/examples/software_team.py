"""A software team: an architect, a coder for each file, reviewers, revisers, and a syntax check by Python itself.

Every role is a semantic function, and the check a native agent in the same graph. All rounds are submitted before the architect
has written a word; the files then go their ways side by side, and no step asks the application.
"""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import myna
from myna.sdk.examples._common import CONSOLE, GREEDY, connected, show, title
from myna.sdk.serving import hosting

TASK = "a small Python program that reports on a list of exam marks"
FILES = {
    "mean.py": "a function mean(marks) that returns the average of a list of numbers",
    "best.py": "a function best(marks) that returns the largest number of a list",
    "passed.py": "a function passed(marks, limit) that returns the numbers of a list that are at least limit",
}
CODE = {"temperature": 0.0, "stop": ("```",), "max_tokens": 96}


@myna.function
def design(task: str, files: str, plan: Annotated[str, myna.Output(max_tokens=64, **GREEDY)]) -> None:
    """
    {{#user}}
    You are the architect of {{task}}. It has these files:
    {{files}}
    Describe in two sentences how the files work together.
    {{/user}}
    {{#assistant}}{{plan}}{{/assistant}}
    """


@myna.function
def write(plan: myna.Input, file: str, job: str, code: Annotated[str, myna.Output(**CODE)]) -> None:
    """
    {{#user}}
    The plan of the program:
    {{plan}}

    Write {{file}}: {{job}}. Only the function, without examples.
    {{/user}}
    {{#assistant}}
    ```python
    {{code}}
    {{/assistant}}
    """


@myna.agent
def check_syntax(code: str) -> str:
    """What Python itself says about a file: its functions, or where it goes wrong."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return f"a syntax error in line {error.lineno}: {error.msg}"
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return f"correct Python that defines {', '.join(functions)}" if functions else "correct Python without a function"


@myna.function
def review(
    job: str, code: myna.Input, report: myna.Input, remark: Annotated[str, myna.Output(max_tokens=40, **GREEDY)]
) -> None:
    """
    {{#user}}
    You review this file, which should hold {{job}}:
    ```python
    {{code}}
    ```
    The syntax check says: {{report}}.
    Say in one sentence what should be better.
    {{/user}}
    {{#assistant}}{{remark}}{{/assistant}}
    """


@myna.function
def revise(job: str, code: myna.Input, remark: myna.Input, better: Annotated[str, myna.Output(**CODE)]) -> None:
    """
    {{#user}}
    This file should hold {{job}}:
    ```python
    {{code}}
    ```
    A reviewer says: {{remark}}
    Write the function again, better, under the same name, without examples.
    {{/user}}
    {{#assistant}}
    ```python
    {{better}}
    {{/assistant}}
    """


@dataclass(frozen=True, slots=True)
class File:
    """How one file came about: what its reviewers said round by round, its last text, and what Python says about it."""

    remarks: tuple[myna.Variable, ...]
    code: myna.Variable
    report: myna.Variable


def develop(plan: myna.Variable, name: str, job: str, rounds: int) -> File:
    """Submit all the work on one file."""
    code = write(plan, name, job)
    report = check_syntax(code=code)
    remarks = []
    for _ in range(rounds):
        remarks.append(review(job, code, report))
        code = revise(job, code, remarks[-1])
        report = check_syntax(code=code)
    return File(tuple(remarks), code, report)


async def main(
    client: myna.Client | None = None, *, files: Mapping[str, str] = FILES, rounds: int = 1
) -> dict[str, tuple[str, str]]:
    """Have the team write `files` (name and job). Returns each file's text and what Python says about it."""
    done: dict[str, tuple[str, str]] = {}
    async with (
        connected(client) as connection,
        hosting(connection.bus, check_syntax, tenant=connection.tenant),
        connection.session("software-team"),
    ):
        plan = design(TASK, "\n".join(f"- {name}: {job}" for name, job in files.items()))
        team = {name: develop(plan, name, job, rounds) for name, job in files.items()}
        title(f"{TASK}: {len(files)} files, {rounds} round(s) of review")
        show("architect", (await plan).strip())
        for name, file in team.items():
            title(name)
            for remark in file.remarks:
                show("reviewer ", (await remark).strip())
            done[name] = (await file.code, await file.report)
            CONSOLE.print(done[name][0].strip(), markup=False)
            show("check    ", done[name][1])
    return done


if __name__ == "__main__":
    asyncio.run(main())
