"""What `python -m benchmarks gpu` runs on a machine with a GPU, and the summary of what it found."""
