"""The command line: one module a command, and beside them the parts that the commands are made of."""
