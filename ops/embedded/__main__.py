"""``python -m ops.embedded``: serve MCP on stdin and stdout."""

from .stdio import serve

serve()
