"""Pictures in and out: files, tiles, upscaling."""
