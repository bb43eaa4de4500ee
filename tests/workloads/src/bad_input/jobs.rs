//! The jobs that cannot succeed, and how each must end.
//!
//! It does not know how a job is submitted.

use hmm::spec::wire::job::{JobDescriptor, JobReply};
use hmm::spec::wire::operation as op;
use hmm::spec::wire::rights;
use hmm::{page_size, Element, Reason, Status};

use super::requests::{address_of, descriptor, KERNEL, NOT_CANONICAL, UNMAPPED};
use crate::sys::Staircase;

/// The required end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// This status and no details.
    Status(Status),
    /// `BadArgument` and this first result.
    BadArgument(u64),
    /// A fault at this address for this right, with this reason.
    Fault(u64, u32, Reason),
}

impl End {
    /// Whether a job has ended so.
    pub(super) fn fits(self, reply: &JobReply) -> bool {
        let status = Status::from_raw(reply.status.get());
        match self {
            Self::Status(expected) => status == Some(expected),
            Self::BadArgument(result) => {
                status == Some(Status::BadArgument) && reply.values[0].get() == result
            }
            Self::Fault(address, right, reason) => {
                status == Some(Status::Fault)
                    && reply.address.get() == address
                    && reply.access.get() & right != 0
                    && Reason::from_raw(reply.reason.get()) == Some(reason)
            }
        }
    }
}

/// Pointers for a job that follows them: their addresses are wrong.
static WILD: [u64; 4] = [UNMAPPED, 0, 0, 0];
/// Indices into a table of four; the third is out of range.
static INDICES: [u64; 4] = [0, 3, 4, 1];
/// Offsets of a graph of two vertices.
static OFFSETS: [u64; 3] = [0, 1, 2];
/// Its edges; the second leads to a vertex that does not exist.
static EDGES: [u32; 2] = [1, 9];

/// The jobs: the case, the job and its end.
#[rustfmt::skip] // A table.
pub(super) fn bad_jobs(stairs: &Staircase) -> Vec<(&'static str, JobDescriptor, End)> {
    use End::{BadArgument, Fault, Status as Ends};
    let (writable, read_only) = (stairs.writable() as u64, stairs.read_only() as u64);
    let none = stairs.inaccessible() as u64;
    let page = page_size() as u64;
    let sum = |source, count| descriptor(op::Sum { source, count, element: Element::U64 });
    let fill = |destination, bytes| descriptor(op::Fill { destination, bytes, pattern: 0x55 });
    let empty = sum(writable, 0);
    // A node that is its own successor.
    let ring = read_only;

    let unknown = JobDescriptor { operation: 999.into(), ..empty };
    let nameless = JobDescriptor { operation: 0.into(), ..empty };
    let reserved = JobDescriptor { reserved: 1.into(), ..empty };
    let mut surplus = empty;
    surplus.arguments[13] = 1.into();
    let mut typeless = empty;
    typeless.arguments[2] = 99.into();

    let walk = |head, next_offset| descriptor(op::ListWalk {
        head, next_offset, value_offset: next_offset, key: 0, limit: 1000,
    });
    let tree = descriptor(op::TreeSum {
        root: ring, left_offset: 0, right_offset: 0, value_offset: 8, limit: 1000,
    });
    let add = |address, element| descriptor(op::AtomicAdd {
        address, element, operand: 1, repeat: 1,
    });
    let dot = descriptor(op::Dot { x: writable, y: writable, count: 8, element: Element::U64 });
    let gather = descriptor(op::Gather {
        table: address_of(&WILD), table_count: 4, index: address_of(&INDICES),
        destination: writable, count: 4, element: Element::U64,
    });
    let bfs = descriptor(op::Bfs {
        offsets: address_of(&OFFSETS), edges: address_of(&EDGES), vertex_count: 2, edge_count: 2,
        start: 0, levels: writable, queue: writable + 64,
    });
    let gemm = descriptor(op::Gemm {
        a: writable, b: writable, c: writable + 2048, m: 4, n: 4, k: 4,
        a_stride: 3, b_stride: 4, c_stride: 4, alpha: 1.0, beta: 0.0,
    });
    let copy = |source, destination, bytes| descriptor(op::Copy { source, destination, bytes });

    vec![
        ("an unknown operation", unknown, Ends(Status::Unsupported)),
        ("operation zero", nameless, Ends(Status::Unsupported)),
        ("a reserved field of a job", reserved, Ends(Status::Malformed)),
        ("an argument too many", surplus, Ends(Status::Malformed)),
        ("an unknown element", typeless, Ends(Status::Malformed)),
        ("reading what is not mapped", sum(UNMAPPED, 8), Fault(UNMAPPED, rights::READ, Reason::Unmapped)),
        ("writing what is not mapped", fill(UNMAPPED, 8), Fault(UNMAPPED, rights::WRITE, Reason::Unmapped)),
        ("an address that cannot be", sum(NOT_CANONICAL, 8), Ends(Status::BadAddress)),
        ("reading the kernel", sum(KERNEL, 8), Ends(Status::BadAddress)),
        ("writing the kernel", fill(KERNEL, 8), Ends(Status::BadAddress)),
        ("reading from ours on to the kernel's", sum(writable, (KERNEL - writable) / 8 + 8), Ends(Status::BadAddress)),
        ("a pointer to the kernel", walk(KERNEL, 0), Fault(KERNEL, rights::READ, Reason::Unmapped)),
        ("a pointer to what cannot be", walk(NOT_CANONICAL, 0), Fault(NOT_CANONICAL, rights::READ, Reason::Unmapped)),
        ("reading PROT_NONE", sum(none, 8), Fault(none, rights::READ, Reason::Denied)),
        ("writing PROT_NONE", fill(none, 8), Fault(none, rights::WRITE, Reason::Denied)),
        ("writing what is read-only", fill(read_only, page), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("copying to what is read-only", copy(writable, read_only, 8), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("an addition to what is read-only", add(read_only, Element::U64), Fault(read_only, rights::WRITE | rights::ATOMIC, Reason::Denied)),
        ("reading what is read-only", sum(read_only, 8), Ends(Status::Ok)),
        ("more elements than addresses", sum(writable, u64::MAX), Ends(Status::BadArgument)),
        ("a length that wraps", copy(writable, writable + 64, u64::MAX), Ends(Status::BadAddress)),
        ("terabytes to read", sum(writable, 1 << 40), Fault(none, rights::READ, Reason::Denied)),
        ("terabytes to write", fill(writable, 1 << 43), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("an atomic between words", add(writable + 4, Element::U64), Ends(Status::BadAddress)),
        ("an atomic of no integer", add(writable, Element::F32), Ends(Status::BadArgument)),
        ("a dot product of integers", dot, Ends(Status::BadArgument)),
        ("an index outside the table", gather, BadArgument(2)),
        ("an edge to nowhere", bfs, Ends(Status::BadArgument)),
        ("rows longer than their stride", gemm, Ends(Status::BadArgument)),
        ("a list that bites its tail", walk(ring, 0), Ends(Status::Bound)),
        ("a tree that grows into itself", tree, Ends(Status::Bound)),
        ("a list that leads nowhere", walk(address_of(&WILD), 0), Fault(UNMAPPED, rights::READ, Reason::Unmapped)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn every_bad_job_is_bad_in_its_own_way() {
        let stairs = Staircase::new(page_size()).unwrap();
        let jobs = bad_jobs(&stairs);
        for (at, (case, job, _)) in jobs.iter().enumerate() {
            for (other, same, _) in &jobs[..at] {
                assert_ne!((job, case), (same, other));
            }
        }
        let endings: Vec<_> = jobs.iter().map(|(.., end)| *end).collect();
        assert!(endings.contains(&End::BadArgument(2)));
    }

    #[test]
    fn an_end_fits_only_the_reply_that_says_all_of_it() {
        let mut reply = JobReply::new_zeroed();
        reply.status = Status::Fault.raw().into();
        reply.reason = Reason::Denied.raw().into();
        reply.address = 64.into();
        reply.access = rights::WRITE.into();
        assert!(End::Fault(64, rights::WRITE, Reason::Denied).fits(&reply));
        assert!(!End::Fault(65, rights::WRITE, Reason::Denied).fits(&reply));
        assert!(!End::Fault(64, rights::READ, Reason::Denied).fits(&reply));
        assert!(!End::Fault(64, rights::WRITE, Reason::Unmapped).fits(&reply));
        assert!(!End::Status(Status::Ok).fits(&reply));
    }
}
