"""Transformers, run and recorded under our names."""
