"""What changed between snapshots, and what became of a row."""
