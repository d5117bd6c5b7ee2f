"""What is done with results later: compare them, make their statistics again, export them."""
