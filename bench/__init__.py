"""Side-by-side measurements: ratios within one run, since absolute times of a shared machine mean little."""
