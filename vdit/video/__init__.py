"""Video files: read, converted, written."""
