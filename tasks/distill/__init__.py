"""Operators of the kind `distill`: a file an operator."""
