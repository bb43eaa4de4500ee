//! Breadth-first search.
//!
//! The levels and the queue are in the job's memory, where the process can change them at any time.
//! Values read there are therefore not trusted, and the state that decides about the end is kept
//! here.

use super::block::Block;
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// Vertices and edges visited in one step: each may be a miss in every cache.
const STEP_VISITS: usize = 1024;

/// The level of a vertex that has not been reached.
const UNREACHED: u32 = u32::MAX;

/// The size of a vertex number and of a level.
const NUMBER: usize = size_of::<u32>();

/// Edges read at once.
const BLOCK_EDGES: usize = 1024;

/// The size of their block.
const BLOCK_BYTES: usize = BLOCK_EDGES * NUMBER;

/// A search and its progress.
#[derive(Debug)]
pub(super) struct Bfs {
    graph: Graph,
    levels: Range,
    queue: Range,
    state: State,
    block: Block,
}

/// The graph, which is only read.
#[derive(Debug)]
struct Graph {
    offsets: Range,
    edges: Range,
    vertex_count: u32,
    edge_count: u64,
}

#[derive(Debug)]
enum State {
    /// Marking every vertex as not reached.
    Clear { start: u32, progress: Progress },
    /// Putting the first vertex into the queue.
    Start { start: u32 },
    /// Visiting the vertices in the queue.
    Search(Search),
}

/// The search proper.
#[derive(Debug)]
struct Search {
    /// The queue index of the vertex to be visited next.
    head: u64,
    /// Vertices that have been put into the queue.
    tail: u64,
    /// The queue index at which the vertices of the next level begin.
    level_end: u64,
    /// The level of the vertex that is being visited.
    level: u32,
    /// The greatest level given so far.
    greatest: u32,
    /// The current vertex's edges that have not been read.
    edges: std::ops::Range<u64>,
    /// The edges in the block that have not been followed.
    block: std::ops::Range<usize>,
}

/// Why a search ends.
enum Stop {
    Fault(Fault),
    /// The graph is invalid, or has been changed meanwhile.
    Broken,
    /// Every vertex in the queue has been visited.
    Finished,
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Bfs {
    pub(super) fn new(operation: operation::Bfs) -> Result<Self, Status> {
        let vertex_count = u32::try_from(operation.vertex_count)
            .ok()
            .filter(|count| *count < UNREACHED)
            .ok_or(Status::BadArgument)?;
        let start = u32::try_from(operation.start)
            .ok()
            .filter(|start| *start < vertex_count)
            .ok_or(Status::BadArgument)?;
        let numbers = |address| Range::new(address, vertex_count.into(), NUMBER as u64);
        let offset_count = u64::from(vertex_count) + 1;
        Ok(Self {
            graph: Graph {
                offsets: Range::new(operation.offsets, offset_count, size_of::<u64>() as u64)?,
                edges: Range::new(operation.edges, operation.edge_count, NUMBER as u64)?,
                vertex_count,
                edge_count: operation.edge_count,
            },
            levels: numbers(operation.levels)?,
            queue: numbers(operation.queue)?,
            state: State::Clear {
                start,
                progress: Progress::new(vertex_count.into()),
            },
            block: Block::new(BLOCK_BYTES)?,
        })
    }
}

impl Run for Bfs {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        match &mut self.state {
            State::Clear { start, progress } => {
                let offset = |progress: &Progress| progress.done() * NUMBER as u64;
                self.levels.expect_from(memory, offset(progress), WRITE);
                self.block.get_mut(BLOCK_EDGES).fill(UNREACHED);
                for _ in 0..STEP_BYTES / BLOCK_BYTES {
                    let count = progress.next(BLOCK_EDGES);
                    let levels = self.block.get(count * NUMBER);
                    memory.write(self.levels.at(offset(progress)), levels)?;
                    progress.advance(count);
                }
                if progress.finished() {
                    self.state = State::Start { start: *start };
                }
                Ok(Step::More)
            }
            State::Start { start } => {
                write(memory, self.queue, 0, *start)?;
                write(memory, self.levels, u64::from(*start), 0)?;
                self.state = State::Search(Search {
                    head: 0,
                    tail: 1,
                    level_end: 1,
                    level: 0,
                    greatest: 0,
                    edges: 0..0,
                    block: 0..0,
                });
                Ok(Step::More)
            }
            State::Search(search) => {
                self.queue
                    .expect_from(memory, search.tail * NUMBER as u64, WRITE);
                let mut visited = 0;
                while visited < STEP_VISITS {
                    let block = &mut self.block;
                    match search.visit(memory, &self.graph, self.levels, self.queue, block) {
                        Ok(more) => visited += more,
                        Err(Stop::Fault(fault)) => return Err(fault),
                        Err(Stop::Broken) => return Ok(search.done(Status::BadArgument)),
                        Err(Stop::Finished) => return Ok(search.done(Status::Ok)),
                    }
                }
                Ok(Step::More)
            }
        }
    }
}

impl Search {
    fn done(&self, status: Status) -> Step {
        Step::Done(status, [self.tail, self.greatest.into(), 0, 0])
    }

    /// Follows the edges in the block, or reads edges, or moves to the next vertex. Returns the
    /// number of vertices and edges visited.
    fn visit(
        &mut self,
        memory: &mut impl Memory,
        graph: &Graph,
        levels: Range,
        queue: Range,
        block: &mut Block,
    ) -> Result<usize, Stop> {
        if !self.block.is_empty() {
            let visited = self.block.len();
            for vertex in &block.get::<u32>(self.block.end)[self.block.start..] {
                self.reach(memory, graph, levels, queue, *vertex)?;
                self.block.start += 1;
            }
            Ok(visited)
        } else if !self.edges.is_empty() {
            let edges = Progress::new(self.edges.end - self.edges.start);
            let (count, address) = (edges.next(BLOCK_EDGES), self.edges.start * NUMBER as u64);
            memory.expect(graph.edges.at(address), edges.rest() * NUMBER as u64, READ);
            memory.read(graph.edges.at(address), block.get_mut(count * NUMBER))?;
            self.edges.start += count as u64;
            self.block = 0..count;
            Ok(0)
        } else if self.head < self.tail {
            self.leave(memory, graph, queue)?;
            Ok(1)
        } else {
            Err(Stop::Finished)
        }
    }

    /// Sets the level of a vertex at the end of an edge and adds the vertex to the queue, unless it
    /// has been reached before.
    fn reach(
        &mut self,
        memory: &mut impl Memory,
        graph: &Graph,
        levels: Range,
        queue: Range,
        vertex: u32,
    ) -> Result<(), Stop> {
        if vertex >= graph.vertex_count {
            return Err(Stop::Broken);
        }
        if levels.load_u32(memory, vertex.into())? != UNREACHED {
            return Ok(());
        }
        if self.tail == u64::from(graph.vertex_count) {
            return Err(Stop::Broken);
        }
        let level = self.level + 1;
        // The write of the level must not fault once the vertex is in the queue.
        memory.reserve(levels.at(u64::from(vertex) * NUMBER as u64), NUMBER as u64)?;
        write(memory, queue, self.tail, vertex)?;
        write(memory, levels, vertex.into(), level)?;
        self.tail += 1;
        self.greatest = level;
        Ok(())
    }

    /// Moves to the next vertex in the queue.
    fn leave(&mut self, memory: &mut impl Memory, graph: &Graph, queue: Range) -> Result<(), Stop> {
        let vertex = queue.load_u32(memory, self.head)?;
        if vertex >= graph.vertex_count {
            return Err(Stop::Broken);
        }
        let offset = u64::from(vertex) * size_of::<u64>() as u64;
        let first = memory.load(graph.offsets.at(offset))?;
        let end = memory.load(graph.offsets.at(offset + size_of::<u64>() as u64))?;
        if first > end || end > graph.edge_count {
            return Err(Stop::Broken);
        }
        if self.head == self.level_end {
            self.level += 1;
            self.level_end = self.tail;
        }
        self.head += 1;
        self.edges = first..end;
        Ok(())
    }
}

/// Writes a number.
fn write(memory: &mut impl Memory, range: Range, index: u64, number: u32) -> Result<(), Fault> {
    memory.write(range.at(index * NUMBER as u64), &number.to_le_bytes())
}
