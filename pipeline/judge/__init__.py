"""Models against the teacher, and what must hold of them."""
