"""Scores a data set of files: partitions that are scored once each, by several processes, and can be taken up again."""
