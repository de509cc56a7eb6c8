"""What contributions cost in time and memory, against the bare price of one gradient: ``python -m benchmarks.cost``."""
