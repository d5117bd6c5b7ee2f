"""Trains and distils image classifiers."""
