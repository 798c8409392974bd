"""What does the work: the engine, the stage task, the nets, and the operators, a folder a kind."""
