//! Measures CPU faults on pages that a node for the kernel's own tests of HMM has moved to its
//! memory.
//!
//! Such a node belongs to our driver or to the kernel's `test_hmm`. It is the only interface that
//! both have, so the two can be compared by it.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hmm::page_size;
use hmm::spec::uapi::dmirror::{DmirrorCall, DmirrorCommand};
use hmm_bench::Bench;
use hmm_tool::buffer::Buffer;
use hmm_tool::walk::WALKS;

use crate::sys::raw_ioctl;

/// Measures single CPU faults and walks.
pub(crate) fn measure(bench: &mut Bench, path: &Path) -> Result<()> {
    bench.group("the CPU touches pages that a test node has sent away");
    let node = Node {
        file: File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?,
    };
    // To map pages that it has moved, `test_hmm` needs other calls than our driver.
    for walk in WALKS.iter().filter(|walk| !walk.mapped) {
        bench.alone(walk.name, walk.per(), || -> Result<Duration> {
            let mut buffer = walk.on_device(|buffer, part| node.migrate(buffer, part))?;
            Ok(walk.access(&mut buffer))
        });
    }
    Ok(())
}

/// An open node. It is bound to this process.
struct Node {
    file: File,
}

impl Node {
    /// Moves pages of a buffer to the node's memory.
    fn migrate(&self, buffer: &Buffer, part: Range<usize>) -> Result<()> {
        // The call also returns the contents of the pages.
        let mut copy = vec![0_u8; part.len()];
        let npages = (part.len() / page_size()) as u64;
        let mut command = DmirrorCommand {
            addr: buffer.bytes()[part].as_ptr().expose_provenance() as u64,
            ptr: copy.as_mut_ptr().expose_provenance() as u64,
            npages,
            cpages: 0,
            faults: 0,
        };
        let code = DmirrorCall::MigrateToDevice.code();
        let address = (&raw mut command).expose_provenance();
        // SAFETY: the call moves pages of the buffer, which keep their contents, and writes to
        // `command` and as many bytes as the pages have to `copy`; both are ours, and as long as it
        // says.
        unsafe { raw_ioctl(self.file.as_fd(), code, address) }.context("moving pages away")?;
        ensure!(
            command.cpages == npages,
            "of {npages} pages {} have moved",
            command.cpages
        );
        Ok(())
    }
}
