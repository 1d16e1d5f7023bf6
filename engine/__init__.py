"""One LLM on one machine: pages, prefix tree, contexts, batching, model, sampling, text. Knows no NATS and no asyncio."""
