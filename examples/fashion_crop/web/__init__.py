"""The models behind HTTP: routes, limits, answers and the page."""
