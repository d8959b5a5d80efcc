"""How losses are best combined: MELTR against its alternatives."""
