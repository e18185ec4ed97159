"""A student that learns from synthetic images alone."""
