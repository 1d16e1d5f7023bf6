"""A cluster on a virtual clock: the real scheduler core, engines modelled by their step times, generated applications."""
