"""The command line: a file a command, with a function of that name; imports of weight are inside it.

`app.py` gathers the commands, `shared.py` holds their common options and printing, `progress.py` shows
a running build, `proof_table.py` a proof, `judged_table.py` judged small sets. A command parses, calls one function of the rooms below,
and prints: data to stdout, everything else to stderr.
"""
