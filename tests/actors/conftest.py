from __future__ import annotations

from tests.network import bus, nats, nats_server, network

__all__ = ["bus", "nats", "nats_server", "network"]
