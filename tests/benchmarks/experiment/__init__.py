"""The experiments' parts: applications, arms, the cluster that runs them, pictures. `tests/benchmarks/experiments.py` is the
command.

    words         texts of an exact number of tokens
    applications  the workloads, written once with the SDK for every arm
    arms          who sends the calls, and what a run comes to
    cluster       NATS, scheduler, engine and gateway as processes; the scheduler is exchanged between arms
    scheduling    the scheduler's process with chosen policies
    hosting       the engine host's process, for models that are made on the spot too
    made          the engine's process over a model with random weights
    workloads     the experiments: what runs when, in which arms, and the rows that come of it
    modelled      the arms on modelled engines, and the applications as jobs for them
    simulated     what needs four engines, and all the rest on one, in the simulator
    floors        what a ratio can reach at most
    comparing     rows and panels from runs
    running       runs experiments on a cluster, and what else is asked for
    smoke         the regression guard
    pictures      figures and timelines
    profile       where time goes
"""
