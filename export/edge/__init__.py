"""What runs without torch and ModelOpt: on an edge device this is all that is needed."""
