//! A guest that breaks every rule.

#![forbid(unsafe_code)]

mod device;
mod memory;
mod pci;
mod ring;
mod transport;

use anyhow::Result;
use device::{Device, Part};
use virtio_hmm_spec::wire::command::*;
use virtio_hmm_spec::wire::Queue;
use zerocopy::little_endian::*;
use zerocopy::IntoBytes;

fn main() -> Result<()> {
    let mut d = Device::open()?;
    println!("{:?}", d.config);
    let h = RequestHeader {
        operation: U16::new(1),
        flags: U16::ZERO,
        space: U32::ZERO,
        count: U32::new(1),
        reserved: U32::ZERO,
    };
    let e = InitEntry {
        version: U32::new(1),
        reserved: U32::ZERO,
    };
    let r = d.exchange(
        Queue::Control,
        &[
            Part::Read(h.as_bytes()),
            Part::Read(e.as_bytes()),
            Part::Write(8),
        ],
    )?;
    println!("INIT answered {r:?}");
    d.restart()?;
    Ok(())
}
