"""Graphs of sessions as people see them: what the calls are, where they stand on a page, and drawings of them."""
