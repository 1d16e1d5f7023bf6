"""The scheduler actor: sees the graph of every session, dispatches ready calls to workers, ends what can't be computed.

`graph` and `fleet` are state, `core` is the pure actor, `shell` ties it to a bus, `lease` makes one of several lead.
"""
