//! What stands where in the files of a cache directory: bytes to values and back, no I/O.
