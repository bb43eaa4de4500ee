//! The calls that must be refused, and with which error.
//!
//! It does not know what is submitted successfully, or when.

use std::os::fd::BorrowedFd;

use hmm::page_size;
use hmm::spec::uapi::{
    migrate_flags, submit_flags, Bind, Call, Cancel, Migrate, Residency, Submit, Wait, WaitAny,
    MAX_RESIDENCY_PAGES, MAX_SUBMIT, MAX_WAIT, VERSION,
};
use hmm::spec::wire::job::JobDescriptor;
use rustix::io::Errno;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::requests::{
    cancel, migrate, raw, residency, submit, wait, wait_any, KERNEL, NOT_CANONICAL, UNMAPPED,
};

/// A call that must be refused.
#[derive(Debug)]
pub(super) struct BadCall {
    /// What is wrong with it.
    pub(super) case: &'static str,
    code: u32,
    argument: Vec<u8>,
    /// The error that it must end with.
    pub(super) error: Errno,
}

impl BadCall {
    fn new<T: Call + IntoBytes + Immutable>(case: &'static str, argument: T, error: Errno) -> Self {
        let argument = argument.as_bytes().to_vec();
        Self::with_code(case, T::CODE, argument, error)
    }

    fn with_code(case: &'static str, code: u32, argument: Vec<u8>, error: Errno) -> Self {
        Self {
            case,
            code,
            argument,
            error,
        }
    }

    /// Makes the call.
    pub(super) fn make(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        raw(file, self.code, &mut self.argument.clone())
    }
}

/// Memory that the arguments of calls name. There is as much of it as the wrong counts among them
/// say, so that a call which is carried out by mistake does no harm.
pub(super) struct Buffers {
    /// Zeros: a driver that does not check the count finds only jobs that do nothing.
    jobs: Vec<JobDescriptor>,
    /// The fence of a job whose result has been fetched, again and again.
    fences: Vec<u64>,
    states: Vec<u8>,
}

impl Buffers {
    /// Allocates the memory. `fetched` is the fence of a job whose result has been fetched; no
    /// other job exists.
    pub(super) fn new(fetched: u64) -> Self {
        Self {
            jobs: vec![JobDescriptor::new_zeroed(); MAX_SUBMIT as usize + 1],
            fences: vec![fetched; MAX_WAIT as usize + 1],
            states: vec![0; 1 + usize::try_from(MAX_RESIDENCY_PAGES).unwrap_or(0)],
        }
    }
}

/// What a request code grows by when its structure is eight bytes longer.
const LONGER: u32 = 8 << 16;

/// Calls on a file that no process is bound to. `here` is the address of a page.
#[rustfmt::skip] // A table.
pub(super) fn before_bind(buffers: &Buffers, here: u64) -> Vec<BadCall> {
    use Errno as E;
    let bind = Bind { version: VERSION, flags: 0 };
    let page = page_size() as u64;

    vec![
        BadCall::new("another version", Bind { version: VERSION + 1, ..bind }, E::PROTO),
        BadCall::new("unknown flags of bind", Bind { flags: 1, ..bind }, E::INVAL),
        BadCall::new("a job, not bound", submit(&buffers.jobs[0]), E::PERM),
        BadCall::new("a wait, not bound", wait(1), E::PERM),
        BadCall::new("a wait for any job, not bound", wait_any(&[]), E::PERM),
        BadCall::new("a cancellation, not bound", cancel(1), E::PERM),
        BadCall::new("a migration, not bound", migrate(here, page), E::PERM),
    ]
}

/// Calls with wrong arguments on a file that this process is bound to. `here` is the address of a
/// page, and `file` the descriptor of an open file that is no eventfd.
#[rustfmt::skip] // A table.
pub(super) fn bound(buffers: &mut Buffers, here: u64, file: i32) -> Vec<BadCall> {
    use Errno as E;
    let page = page_size() as u64;
    let many_states = MAX_RESIDENCY_PAGES + 1;
    let bind = Bind { version: VERSION, flags: 0 };
    let jobs = submit(&buffers.jobs[0]);
    let fetched = buffers.fences[0];
    let any = wait_any(&buffers.fences[..1]);
    let cancellation = cancel(fetched);
    let pages = migrate(here, page);
    let states = Residency { pages: 1, ..residency(here, &mut buffers.states) };
    let bytes_of_wait = wait(1).as_bytes().to_vec();
    let longer_wait = [&bytes_of_wait[..], &[0; 8]].concat();

    vec![
        // A request code has the number in its first byte and the size in its third.
        BadCall::with_code("an unknown number", Wait::CODE | 0x3f, bytes_of_wait.clone(), E::NOTTY),
        BadCall::with_code("a shorter structure", Wait::CODE - LONGER, bytes_of_wait, E::NOTTY),
        BadCall::with_code("a longer structure", Wait::CODE + LONGER, longer_wait, E::NOTTY),
        BadCall::new("a second bind", bind, E::BUSY),

        BadCall::new("no jobs", Submit { count: 0, ..jobs }, E::INVAL),
        BadCall::new("too many jobs", Submit { count: MAX_SUBMIT + 1, ..jobs }, E::INVAL),
        BadCall::new("unknown flags of submit", Submit { flags: submit_flags::ALL + 1, ..jobs }, E::INVAL),
        BadCall::new("an eventfd without its flag", Submit { eventfd: 1, ..jobs }, E::INVAL),
        BadCall::new("an eventfd that is not open", Submit { flags: submit_flags::EVENTFD, eventfd: -1, ..jobs }, E::BADF),
        BadCall::new("an eventfd that is none", Submit { flags: submit_flags::EVENTFD, eventfd: file, ..jobs }, E::INVAL),
        BadCall::new("jobs that wrap", Submit { jobs: u64::MAX - 7, ..jobs }, E::FAULT),
        BadCall::new("jobs that are not there", Submit { jobs: UNMAPPED, ..jobs }, E::FAULT),
        BadCall::new("jobs in the kernel", Submit { jobs: KERNEL, ..jobs }, E::FAULT),

        BadCall::new("a fence of no job", wait(u64::MAX), E::NOENT),
        BadCall::new("a result fetched twice", wait(fetched), E::NOENT),

        BadCall::new("any of too many jobs", wait_any(&buffers.fences), E::INVAL),
        BadCall::new("unknown flags of a wait for any job", WaitAny { flags: 1, ..any }, E::INVAL),
        BadCall::new("any of no jobs", wait_any(&[]), E::NOENT),
        BadCall::new("any job, which was fetched", any, E::NOENT),
        BadCall::new("fences that are not there", WaitAny { fences: UNMAPPED, ..any }, E::FAULT),
        BadCall::new("fences in the kernel", WaitAny { fences: KERNEL, ..any }, E::FAULT),
        BadCall::new("fences that wrap", WaitAny { fences: u64::MAX - 7, count: 2, ..any }, E::FAULT),

        BadCall::new("cancelling what was fetched", cancellation, E::NOENT),
        BadCall::new("cancelling no job", cancel(u64::MAX), E::NOENT),
        BadCall::new("unknown flags of a cancellation", Cancel { flags: 1, ..cancellation }, E::INVAL),
        BadCall::new("a reserved field of a cancellation", Cancel { reserved: 1, ..cancellation }, E::INVAL),

        BadCall::new("pages not aligned", Migrate { address: here + 8, ..pages }, E::INVAL),
        BadCall::new("a part of a page", Migrate { bytes: page / 2, ..pages }, E::INVAL),
        BadCall::new("a range that wraps", Migrate { address: page.wrapping_neg(), bytes: 2 * page, ..pages }, E::INVAL),
        BadCall::new("an unknown destination", Migrate { destination: 7, ..pages }, E::INVAL),
        BadCall::new("unknown flags of migrate", Migrate { flags: 2, ..pages }, E::INVAL),
        BadCall::new("populating the guest's memory", Migrate { flags: migrate_flags::POPULATE, destination: 0, ..pages }, E::INVAL),
        BadCall::new("more than all pages", Migrate { bytes: page.wrapping_neg(), ..pages }, E::INVAL),
        BadCall::new("pages of the kernel", Migrate { address: KERNEL, ..pages }, E::INVAL),
        BadCall::new("pages that cannot be", Migrate { address: NOT_CANONICAL, ..pages }, E::INVAL),
        BadCall::new("pages from ours on to the kernel's", Migrate { bytes: KERNEL - here, ..pages }, E::INVAL),

        BadCall::new("no pages to look at", Residency { pages: 0, ..states }, E::INVAL),
        BadCall::new("too many pages to look at", Residency { pages: many_states, ..states }, E::INVAL),
        BadCall::new("looking between pages", Residency { address: here + 8, ..states }, E::INVAL),
        BadCall::new("looking at pages that wrap", Residency { address: page.wrapping_neg(), pages: 2, ..states }, E::INVAL),
        BadCall::new("looking at pages of the kernel", Residency { address: KERNEL, ..states }, E::INVAL),
        BadCall::new("looking at pages that cannot be", Residency { address: NOT_CANONICAL, ..states }, E::INVAL),
        BadCall::new("unknown flags of residency", Residency { flags: 1, ..states }, E::INVAL),
        BadCall::new("states that have no room", Residency { states: UNMAPPED, ..states }, E::FAULT),
        BadCall::new("states in the kernel", Residency { states: KERNEL, ..states }, E::FAULT),
        BadCall::new("a process that is not bound", Residency { pid: 1, ..states }, E::SRCH),
    ]
}

/// The codes of all calls that take an argument from the process.
pub(super) const CODES: [u32; 7] = [
    Bind::CODE,
    Submit::CODE,
    Wait::CODE,
    Migrate::CODE,
    Residency::CODE,
    Cancel::CODE,
    WaitAny::CODE,
];

#[cfg(test)]
mod tests {
    use super::super::requests::size_in;
    use super::*;
    use hmm::spec::wire::Layout;

    const HERE: u64 = 0x7000_0000;

    /// The calls of both tables.
    fn all() -> [Vec<BadCall>; 2] {
        let mut buffers = Buffers::new(9);
        [before_bind(&buffers, HERE), bound(&mut buffers, HERE, 0)]
    }

    #[test]
    fn every_bad_call_is_bad_in_its_own_way() {
        for calls in all() {
            for (at, call) in calls.iter().enumerate() {
                for other in &calls[..at] {
                    assert_ne!(call.case, other.case);
                    let same = (call.code, &call.argument) == (other.code, &other.argument);
                    assert!(!same, "{} and {}", call.case, other.case);
                }
            }
        }
    }

    #[test]
    fn no_code_says_that_a_structure_is_longer_than_it_is() {
        for call in all().iter().flatten() {
            assert!(size_in(call.code) <= call.argument.len(), "{}", call.case);
        }
    }

    #[test]
    fn every_call_that_takes_an_argument_is_made_in_a_wrong_way() {
        let calls = all();
        for code in CODES {
            let mut calls = calls.iter().flatten();
            assert!(calls.any(|call| call.code == code), "{code:#x}");
        }
    }

    #[test]
    fn another_size_is_another_code() {
        assert_eq!(size_in(Wait::CODE), Wait::SIZE);
        assert_eq!(size_in(Wait::CODE - LONGER), Wait::SIZE - 8);
        assert_eq!(size_in(Wait::CODE + LONGER), Wait::SIZE + 8);
    }
}
