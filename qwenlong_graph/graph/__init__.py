"""The memory agent as a LangGraph state machine."""
