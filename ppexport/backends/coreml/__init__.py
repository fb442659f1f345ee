"""Core ML: builds packages, checks them on any machine, and says where their operations may run."""
