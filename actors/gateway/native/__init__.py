"""Myna's own API: sessions, calls, variables and graphs, as the SDK has them.

Law: how a variable has ended is data, whatever it ended in; an error is only what is wrong with the request itself.
"""
