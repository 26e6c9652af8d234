"""python -m udml demo: train on the fused ops and on the reference, compare the runs and plot them."""
