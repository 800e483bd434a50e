"""How large an error rounding alone makes."""
