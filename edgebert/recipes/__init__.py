"""Recipes that ship with edgebert, as TOML files."""
