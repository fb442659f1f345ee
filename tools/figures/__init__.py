"""What writes measured figures into files: parts of tools/renew_numbers.py, tools/bundle.py and others."""
