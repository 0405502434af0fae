"""Mutation testing: break one thing of a module at a time, and see whether a test notices."""
