"""Places that hold blobs, manifests and refs: one module per kind of place."""
