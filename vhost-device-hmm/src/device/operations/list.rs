//! The walk along a linked list.

use super::step::{Fault, Memory, Run, Step};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;

/// Nodes visited in one step: each may be a miss in every cache.
const STEP_NODES: usize = 1024;

/// Walks from node to node; the current one is `node`.
#[derive(Debug)]
pub(super) struct ListWalk {
    operation: operation::ListWalk,
    node: u64,
    visited: u64,
    sum: u64,
    found: u64,
}

impl ListWalk {
    pub(super) fn new(operation: operation::ListWalk) -> Result<Self, Status> {
        Ok(Self {
            operation,
            node: operation.head,
            visited: 0,
            sum: 0,
            found: 0,
        })
    }

    fn done(&self, status: Status) -> Step {
        Step::Done(status, [self.visited, self.sum, self.found, 0])
    }
}

impl Run for ListWalk {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let operation::ListWalk {
            next_offset,
            value_offset,
            key,
            limit,
            ..
        } = self.operation;
        for _ in 0..STEP_NODES {
            if self.node == 0 {
                return Ok(self.done(Status::Ok));
            }
            if self.visited == limit {
                return Ok(self.done(Status::Bound));
            }
            // Offsets wrap, so that a link may point to the middle of its node.
            let next = memory.load(self.node.wrapping_add(next_offset))?;
            let value = memory.load(self.node.wrapping_add(value_offset))?;
            if value == key && self.found == 0 {
                self.found = self.node;
            }
            self.visited += 1;
            self.sum = self.sum.wrapping_add(value);
            self.node = next;
        }
        Ok(Step::More)
    }
}
