"""Text in, text out: readers of rated data, the record files, preprocessing and cleaning. No torch, no HTTP server."""
