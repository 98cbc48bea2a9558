"""A small MCP server on stdio that stands behind the gateway on its first run: ``python -m ops.embedded``."""
