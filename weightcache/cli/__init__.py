"""What people at a terminal run; no container needs it."""
