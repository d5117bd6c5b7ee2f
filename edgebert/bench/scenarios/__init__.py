"""Every scenario but single-stream: the loops in the worker, their plan, and what is made of their samples."""
