"""From a float graph to a symmetric INT8 graph, with real calibration images."""
