"""More machines, by Ray: the only room that knows it, and it loads when a command asks for it."""
