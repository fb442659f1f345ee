"""ATD-light and PP-ATD-light."""
