"""Watching the engines: what they show of themselves, kept for a while, for the window and for `myna top`."""
