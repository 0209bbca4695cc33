"""CUDA kernels, `<name>.cu`, and beside each the launcher that knows its arguments, `<name>.py`."""
