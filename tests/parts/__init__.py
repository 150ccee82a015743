"""Real parts for tests and benchmarks: they start in seconds and do not outlive the process that started them."""
