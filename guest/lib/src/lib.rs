//! Use a virtio-hmm accelerator.
