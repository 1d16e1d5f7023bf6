"""The decode step of a CPU, compiled: one function from token ids to logits, run by a team of threads without Python between.

numba compiles it at first use (LLVM comes as a wheel; no C compiler is needed) and keeps the machine code on disk.
"""
