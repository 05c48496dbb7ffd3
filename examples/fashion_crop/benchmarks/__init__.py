"""How long the example takes to start, compared with the usual way. Nothing here is deployed."""
