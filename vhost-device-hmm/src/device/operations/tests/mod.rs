//! Each operation against its plain reference, in kind and hostile memory.

mod bytes;
mod layout;
mod memory;
mod reduce;
