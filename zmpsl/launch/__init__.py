"""How roles get started on this machine."""
