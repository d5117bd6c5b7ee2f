"""Runs a compiled model inside an application: runners, one per backend, and the Classifier."""
