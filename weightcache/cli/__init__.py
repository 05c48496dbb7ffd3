"""The command line: arguments in, text or JSON out. Apps never import it."""
