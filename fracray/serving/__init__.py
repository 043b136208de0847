"""A checkpoint behind HTTP: uploads, decoders and networks in processes that can be lost, batches, and the page."""
