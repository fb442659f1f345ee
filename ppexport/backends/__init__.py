"""One folder per edge runtime: a builder (twin -> artifact) and a runner (artifact -> callable)."""
