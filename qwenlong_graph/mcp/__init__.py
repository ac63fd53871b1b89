"""The MCP server: questions about long documents as tools, kept runs as resources."""
