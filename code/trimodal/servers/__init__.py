"""Transport: bytes in, bytes and a status out."""
