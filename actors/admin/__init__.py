"""The health listener: health, metrics and the operators' API, served by a process of its own."""
