"""From a checkpoint to a graph, and from a graph to the form a device runs."""
