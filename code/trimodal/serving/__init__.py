"""The request path, stage by stage."""
