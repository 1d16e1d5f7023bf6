"""One model over several devices of one machine, divided within its layers: tensor parallelism.

Law: all ranks do the same steps in the same order. The leader, rank 0, is the engine: it plans, draws and tells; followers know
no request. A rank that is lost, or can't do what the others do, ends them all: then the engine's calls go on elsewhere.
"""
