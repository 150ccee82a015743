"""The worker's own code on a deterministic loop, between simulated parts that fail when a seed says so."""
