"""Real pictures that judge: how they are found, decoded and put to the teacher's size."""
