"""What a message says, as far as that can hurt who receives it: the content stage's detectors, and their verdicts."""
