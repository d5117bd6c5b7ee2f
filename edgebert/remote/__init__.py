"""A device over SSH: the wheel that runs there, the link, and what is done through it."""
