"""Formulas and decisions: percentiles, contrasts over launches, the verdict. Plain numbers in, plain numbers out."""
