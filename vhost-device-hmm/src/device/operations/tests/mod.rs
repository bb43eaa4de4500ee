//! Each operation against its plain reference, in kind and hostile memory.

mod atomics;
mod bytes;
mod hostile;
mod layout;
mod memory;
mod pointers;
mod reduce;
mod vectors;
