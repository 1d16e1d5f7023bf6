"""The processes that talk over NATS, and the wire between them. See each module's law; start with `messages` and `subjects`."""
