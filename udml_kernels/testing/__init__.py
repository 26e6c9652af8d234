"""One description of every op, from which the tests, `check`, `aot` and the benchmarks take what they run."""
