"""One folder per edge runtime: a builder (twin -> artefact) and a runner (artefact -> callable)."""
