//! A job's memory on a vector of bytes, kind or hostile.

use crate::device::operations::{Fault, Memory, Step, Width, Work, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::rights::{ATOMIC, READ, WRITE};

/// Small pages, so that short tests cross many.
const PAGE: usize = 256;

/// The address of the first byte; not aligned to anything.
pub(super) const BASE: u64 = 0x7f12_3456_7003;

/// The behaviour of pages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Temper {
    /// Every page is there.
    Kind,
    /// A page comes when it was missed, with the rights that were needed.
    Lazy,
    /// The same, and any page may be gone before a step.
    Forgetful(u64),
}

/// Bytes at [`BASE`], of which pages may be absent or read-only.
#[derive(Debug)]
pub(super) struct Arena {
    pub(super) bytes: Vec<u8>,
    rights: Vec<u32>,
    temper: Temper,
    /// Accesses in this step, which must stay bounded.
    moved: usize,
    pub(super) faults: u64,
}

/// A small generator (xorshift), good enough to choose pages.
fn shuffle(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

impl Arena {
    pub(super) fn new(bytes: Vec<u8>, temper: Temper) -> Self {
        let rights = match temper {
            Temper::Kind => READ | WRITE | ATOMIC,
            Temper::Lazy | Temper::Forgetful(_) => 0,
        };
        let pages = bytes.len().div_ceil(PAGE) + 1;
        Self {
            bytes,
            rights: vec![rights; pages],
            temper,
            moved: 0,
            faults: 0,
        }
    }

    /// The position of a range in the vector, or why the range cannot be used.
    fn locate(&mut self, address: u64, bytes: usize, access: u32) -> Result<usize, Fault> {
        self.moved += bytes;
        let absent = |address| Err(Fault { address, access });
        let Some(start) = address
            .checked_sub(BASE)
            .and_then(|start| usize::try_from(start).ok())
        else {
            return absent(address);
        };
        if start >= self.bytes.len() && bytes > 0 {
            return absent(address);
        }
        let end = start.saturating_add(bytes);
        for page in start / PAGE..end.min(self.bytes.len()).div_ceil(PAGE) {
            if self.rights[page] & access != access {
                let first = (page * PAGE).max(start);
                return absent(BASE + first as u64);
            }
        }
        if end > self.bytes.len() {
            return absent(BASE + self.bytes.len() as u64);
        }
        Ok(start)
    }

    /// Makes the page of a fault present; returns whether there is one.
    pub(super) fn resolve(&mut self, fault: Fault) -> bool {
        self.faults += 1;
        let Some(offset) = fault.address.checked_sub(BASE) else {
            return false;
        };
        let Ok(offset) = usize::try_from(offset) else {
            return false;
        };
        if offset >= self.bytes.len() {
            return false;
        }
        let page = &mut self.rights[offset / PAGE];
        assert_ne!(
            *page & fault.access,
            fault.access,
            "a fault where there was a page"
        );
        *page |= fault.access;
        true
    }

    /// Runs an operation to its end.
    ///
    /// # Errors
    ///
    /// The fault that could not be resolved, if the operation ended with one.
    pub(super) fn run(&mut self, operation: Operation) -> Result<(Status, [u64; 4]), Fault> {
        match Work::new(operation) {
            Ok(mut work) => self.finish(&mut work),
            Err(status) => Ok((status, [0; 4])),
        }
    }

    pub(super) fn finish(&mut self, work: &mut Work) -> Result<(Status, [u64; 4]), Fault> {
        loop {
            if let Temper::Forgetful(seed) = &mut self.temper {
                // Pages go more slowly than they come, or no operation that needs several would
                // end.
                if shuffle(seed) % 4 == 0 {
                    let page = shuffle(seed) % self.rights.len() as u64;
                    self.rights[usize::try_from(page).unwrap()] = 0;
                }
            }
            self.moved = 0;
            // {dev-bounded-step}
            let step = work.step(self);
            assert!(
                self.moved <= 2 * STEP_BYTES,
                "a step moved {} bytes",
                self.moved
            );
            match step {
                Ok(Step::More) => {}
                Ok(Step::Done(status, results)) => return Ok((status, results)),
                Err(fault) => {
                    if !self.resolve(fault) {
                        return Err(fault);
                    }
                }
            }
        }
    }
}

impl Memory for Arena {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let start = self.locate(address, into.len(), READ)?;
        into.copy_from_slice(&self.bytes[start..start + into.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let start = self.locate(address, from.len(), WRITE)?;
        self.bytes[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn load(&mut self, address: u64) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        let bytes = usize::try_from(bytes).unwrap();
        self.locate(address, bytes, WRITE).map(|_| ())
    }

    fn update(
        &mut self,
        address: u64,
        width: Width,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault> {
        let bytes = match width {
            Width::U32 => 4,
            Width::U64 => 8,
        };
        assert_eq!(address % bytes as u64, 0, "an atomic access is aligned");
        let start = self.locate(address, bytes, READ | WRITE | ATOMIC)?;
        let there = &mut self.bytes[start..start + bytes];
        let mut raw = [0; 8];
        raw[..bytes].copy_from_slice(there);
        let old = u64::from_le_bytes(raw);
        // Another processor was faster, once.
        let _ = update(!old & (u64::MAX >> (64 - 8 * bytes)));
        if let Some(new) = update(old) {
            assert!(
                bytes == 8 || new >> 32 == 0,
                "a wide value for a narrow place"
            );
            there.copy_from_slice(&new.to_le_bytes()[..bytes]);
        }
        Ok(old)
    }

    fn expect(&mut self, address: u64, bytes: u64, access: u32) {
        assert!(
            bytes <= 64 << 20,
            "{bytes} bytes at {address:#x} are announced"
        );
        assert!(matches!(access, READ | WRITE));
    }
}
