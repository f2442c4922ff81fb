"""What the container measures of itself, and where it sends that."""
