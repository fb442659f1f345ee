"""Pages and tables for people, drawn from the files that parity and profile runs leave."""
