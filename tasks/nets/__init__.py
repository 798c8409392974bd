"""Networks, their training loop, and the classifiers that operators share."""
