"""Agents as workers: the host that runs functions over the worker protocol."""
