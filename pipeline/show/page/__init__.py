"""What report.html is made of: words, drawings, pictures, sentences."""
