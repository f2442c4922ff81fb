"""What makes a graph faster; each module is one pass: files in, new files out, or an `OptimizationError`."""
