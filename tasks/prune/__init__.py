"""Operators of the kind `prune`: a file an operator."""
