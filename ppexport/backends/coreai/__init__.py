"""Core AI: Apple's successor to Core ML, whose own runtime also executes on Linux."""
