"""`python -m myna` is the command `myna`."""

from myna.sdk.cli import main

main(prog_name="myna")
