"""One file a verb. Each takes a typed configuration and a run directory; the order on the page is the order of the run."""
