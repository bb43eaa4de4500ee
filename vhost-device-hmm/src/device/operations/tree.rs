//! Binary trees: search and sum.

use super::step::{Fault, Memory, Run, Step};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;

/// Nodes visited in one step: each may be a miss in every cache.
const STEP_NODES: usize = 1024;

/// The deepest tree that is summed; a promise of the specification. It limits the stack, which
/// holds at most one node for each level.
const MOST_DEPTH: u32 = 65_536;

/// Walks down a tree; the current node is `node`.
#[derive(Debug)]
pub(super) struct TreeSearch {
    operation: operation::TreeSearch,
    node: u64,
    visited: u64,
}

impl TreeSearch {
    pub(super) fn new(operation: operation::TreeSearch) -> Result<Self, Status> {
        Ok(Self {
            operation,
            node: operation.root,
            visited: 0,
        })
    }
}

impl Run for TreeSearch {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let wanted = self.operation.key;
        for _ in 0..STEP_NODES {
            if self.node == 0 {
                return Ok(Step::Done(Status::Ok, [0, self.visited, 0, 0]));
            }
            if self.visited == self.operation.limit {
                return Ok(Step::Done(Status::Bound, [0, self.visited, 0, 0]));
            }
            // Offsets wrap, so that a link may point to the middle of its node.
            let key = memory.load(self.node.wrapping_add(self.operation.key_offset))?;
            if key == wanted {
                return Ok(Step::Done(Status::Ok, [self.node, self.visited + 1, 0, 0]));
            }
            let offset = if wanted < key {
                self.operation.left_offset
            } else {
                self.operation.right_offset
            };
            self.node = memory.load(self.node.wrapping_add(offset))?;
            self.visited += 1;
        }
        Ok(Step::More)
    }
}

/// A node and its depth below the root.
#[derive(Clone, Copy, Debug)]
struct Visit {
    node: u64,
    depth: u32,
}

/// Visits all nodes of a tree. The current node is `here`; the stack holds nodes that are still to
/// be visited.
#[derive(Debug)]
pub(super) struct TreeSum {
    operation: operation::TreeSum,
    here: Visit,
    stack: Vec<Visit>,
    visited: u64,
    sum: u64,
}

impl TreeSum {
    pub(super) fn new(operation: operation::TreeSum) -> Result<Self, Status> {
        let here = Visit {
            node: operation.root,
            depth: 0,
        };
        Ok(Self {
            operation,
            here,
            stack: Vec::new(),
            visited: 0,
            sum: 0,
        })
    }

    fn done(&self, status: Status) -> Step {
        Step::Done(status, [self.visited, self.sum, 0, 0])
    }
}

impl Run for TreeSum {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        let operation::TreeSum {
            left_offset,
            right_offset,
            value_offset,
            limit,
            ..
        } = self.operation;
        for _ in 0..STEP_NODES {
            let Visit { node, depth } = self.here;
            if node == 0 {
                match self.stack.pop() {
                    Some(visit) => self.here = visit,
                    None => return Ok(self.done(Status::Ok)),
                }
                continue;
            }
            if self.visited == limit || depth == MOST_DEPTH {
                return Ok(self.done(Status::Bound));
            }
            let left = memory.load(node.wrapping_add(left_offset))?;
            let right = memory.load(node.wrapping_add(right_offset))?;
            let value = memory.load(node.wrapping_add(value_offset))?;
            if right != 0 {
                if self.stack.try_reserve(1).is_err() {
                    return Ok(self.done(Status::NoMemory));
                }
                self.stack.push(Visit {
                    node: right,
                    depth: depth + 1,
                });
            }
            self.here = Visit {
                node: left,
                depth: depth + 1,
            };
            self.visited += 1;
            self.sum = self.sum.wrapping_add(value);
        }
        Ok(Step::More)
    }
}
