"""How anything is trained, and nothing of what."""
