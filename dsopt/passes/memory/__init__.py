"""Memory planning: which values live when, and where each is placed in one block of memory."""
