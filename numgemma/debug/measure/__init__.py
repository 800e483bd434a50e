"""The numbers by which two tensors are compared, and what is known of them."""
