"""What the service costs beside the tools that a user would reach for, as whole processes on the same bytes."""
