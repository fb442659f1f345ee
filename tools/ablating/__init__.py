"""Parts of tools/ablation.py: variants, data sets, measuring, the file of finished results, the report."""
