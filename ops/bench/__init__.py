"""Measurements of the running gateway. Each prints figures and judges nothing."""
