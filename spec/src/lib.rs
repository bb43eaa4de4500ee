//! The virtio-hmm wire format and user interface.
