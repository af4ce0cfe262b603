"""The networks, and the table of their published sizes."""
