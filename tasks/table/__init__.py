"""Operators of the kind `table`: a file an operator."""
