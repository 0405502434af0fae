"""The portal as a process before a real service, and visitors without a browser. In a browser: tests/browser."""
