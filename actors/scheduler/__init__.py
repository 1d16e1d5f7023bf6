"""The scheduler actor: sees the graph of every session, dispatches ready calls to workers, ends what can't be computed.

`core` is the pure actor and lists its rooms, `shell` ties it to a bus, `lease` makes one of several lead.
"""
