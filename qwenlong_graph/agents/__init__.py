"""Ways into larger agents: a tool, messages, middleware, hand-off."""
