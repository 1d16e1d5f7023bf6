"""What actors show to an operator's instruments: metrics for Prometheus, traces for OpenTelemetry. Logs are in `actors.logs`.

Law: nothing here changes what an actor does, and what is not asked for is not loaded. No label names a session or a call.
"""
