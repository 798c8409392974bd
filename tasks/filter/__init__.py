"""Operators of the kind `filter`: a file an operator."""
