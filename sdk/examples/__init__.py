"""Examples: real applications of the SDK, short enough to copy. `myna demo` lists them, `myna demo NAME` runs one.

Each has a `main` that takes a client (by default it connects as `myna.connect` does, to a machine of its own if none runs) and
returns its results. All are greedy, so that a run can be repeated.
"""
