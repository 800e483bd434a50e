"""Whose fault a wrong number is."""
