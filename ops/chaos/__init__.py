"""Breaks a gateway on purpose, under load, and judges it from outside: ``python -m ops.chaos --help``."""
