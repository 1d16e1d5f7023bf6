"""How a supervised process begins; see `child`."""

from myna.actors.machine.child import main

main()
