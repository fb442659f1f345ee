"""The search for a placement of int8 that is worth its loss."""
