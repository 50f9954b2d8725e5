"""Watching the user's program run: calls, autograd graph, recordings to play again."""
