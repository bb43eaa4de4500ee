#[cfg(CONFIG_RUST_HMM_ABSTRACTIONS)]
pub mod device;
#[cfg(CONFIG_RUST_HMM_ABSTRACTIONS)]
pub use device::*;
