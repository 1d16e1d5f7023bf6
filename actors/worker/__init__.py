"""The worker actor: one protocol for engines of every kind and for agents (Law 7).

`core` is the pure actor (runs, chunks, values, fencing), `shell` ties it to a bus and to a `backend`, which does the work.
"""
