"""Raw log -> prepared store -> batches."""
