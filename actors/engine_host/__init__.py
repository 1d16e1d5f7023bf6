"""The engine host: a worker actor whose backend is an engine process (or, with `--noop`, none)."""
