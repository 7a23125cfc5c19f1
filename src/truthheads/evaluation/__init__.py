"""Run benchmarks on a model: untouched, with gates, and with control gates."""
