"""Engines that people already run: a worker for each endpoint (vLLM, SGLang, llama.cpp, hosted), in one process."""
