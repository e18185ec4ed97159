"""What an edge device gets of a run: the model, how pictures enter it, and programs that run it."""
