"""Messages, channels and addresses between actors. Imports nothing of the rest of the project."""
