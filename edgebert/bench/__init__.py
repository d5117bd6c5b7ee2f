"""Measures accuracy and latency of the same artefact in the same process."""
