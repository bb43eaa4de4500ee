//! The runs that are recorded: which jobs, on memory of a chosen size.
//!
//! It does not know what becomes of the traces.

use hmm_replay::trace::Trace;
use virtio_hmm_spec::wire::operation::{
    Axpy, Bfs, Copy, Dot, Element, Gather, Gemm, ListWalk, Scatter, Sort, Sum, TreeSum,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::recorder::Recorder;

/// A run.
pub(crate) struct Run {
    /// Its name.
    pub(crate) name: &'static str,
    /// Runs it on about so many bytes.
    record: fn(usize) -> Trace,
}

impl Run {
    /// What it uses on about so many bytes.
    pub(crate) fn record(&self, bytes: usize) -> Trace {
        (self.record)(bytes)
    }
}

/// Rounds of what is iterated.
const ROUNDS: usize = 8;

/// All runs.
pub(crate) const RUNS: [Run; 12] = [
    Run {
        name: "stream once",
        record: |bytes| stream(bytes, 1),
    },
    Run {
        name: "stream x8",
        record: |bytes| stream(bytes, ROUNDS),
    },
    Run {
        name: "ping-pong x8",
        record: ping_pong,
    },
    Run {
        name: "tiles x8",
        record: tiles,
    },
    Run {
        name: "axpy x4",
        record: axpy,
    },
    Run {
        name: "gemm",
        // Fewer bytes make so few blocks of the product that its pattern is lost.
        record: |bytes| gemm(3 * bytes),
    },
    Run {
        name: "sort",
        record: sort,
    },
    Run {
        name: "scatter",
        record: scatter,
    },
    Run {
        name: "skewed gather",
        record: skewed_gather,
    },
    Run {
        name: "list x3",
        record: list,
    },
    Run {
        name: "tree x3",
        record: tree,
    },
    Run {
        name: "bfs",
        record: bfs,
    },
];

/// Sums of all memory, one after the other.
fn stream(bytes: usize, rounds: usize) -> Trace {
    let mut recorder = Recorder::new(bytes);
    for _ in 0..rounds {
        recorder.run(Sum {
            source: 0,
            count: bytes as u64 / 8,
            element: Element::U64,
        });
    }
    recorder.finish()
}

/// Copies from one half to the other and back.
fn ping_pong(bytes: usize) -> Trace {
    let half = bytes as u64 / 2;
    let mut recorder = Recorder::new(bytes);
    for round in 0..ROUNDS {
        let (source, destination) = if round % 2 == 0 { (0, half) } else { (half, 0) };
        recorder.run(Copy {
            source,
            destination,
            bytes: half,
        });
    }
    recorder.finish()
}

/// Products of each tile of 64 KiB with the same one.
fn tiles(bytes: usize) -> Trace {
    const TILE: usize = 64 << 10;
    let mut recorder = Recorder::new(bytes);
    for _ in 0..ROUNDS {
        for tile in 1..bytes / TILE {
            recorder.run(Dot {
                x: (tile * TILE) as u64,
                y: 0,
                count: TILE as u64 / 4,
                element: Element::F32,
            });
        }
    }
    recorder.finish()
}

/// A multiple of one half is added to the other, four times.
fn axpy(bytes: usize) -> Trace {
    let half = bytes as u64 / 2;
    let mut recorder = Recorder::new(bytes);
    for _ in 0..4 {
        recorder.run(Axpy {
            x: 0,
            y: half,
            count: half / 4,
            element: Element::F32,
            alpha: 0.5,
        });
    }
    recorder.finish()
}

/// The product of two matrices is added to a third one.
fn gemm(bytes: usize) -> Trace {
    let side = (bytes / 12).isqrt() as u64;
    let area = side * side * 4;
    let mut recorder = Recorder::new(bytes);
    recorder.run(Gemm {
        a: 0,
        b: area,
        c: 2 * area,
        m: side,
        n: side,
        k: side,
        a_stride: side,
        b_stride: side,
        c_stride: side,
        alpha: 1.0,
        beta: 1.0,
    });
    recorder.finish()
}

/// Random numbers are sorted, with as much memory beside them.
fn sort(bytes: usize) -> Trace {
    let half = bytes / 2;
    let mut recorder = Recorder::new(bytes);
    let mut random = fastrand::Rng::with_seed(1);
    recorder.memory()[..half / 8].fill_with(|| random.u64(..));
    recorder.run(Sort {
        data: 0,
        count: half as u64 / 8,
        temporary: half as u64,
    });
    recorder.finish()
}

/// Where the indices, the elements and the table of a run are: one element for every three lines.
struct Column {
    elements: u64,
    table: u64,
    table_count: u64,
    count: u64,
}

impl Column {
    fn new(bytes: usize) -> Self {
        let count = bytes as u64 / 192;
        let table = 16 * count;
        Self {
            elements: 8 * count,
            table,
            table_count: (bytes as u64 - table) / 8,
            count,
        }
    }

    fn fill(&self, recorder: &mut Recorder, mut index: impl FnMut() -> u64) {
        let count = usize::try_from(self.count).expect("fits into memory");
        recorder.memory()[..count].fill_with(&mut index);
    }
}

/// Numbers are written to random places of a table.
fn scatter(bytes: usize) -> Trace {
    let column = Column::new(bytes);
    let mut recorder = Recorder::new(bytes);
    let mut random = fastrand::Rng::with_seed(2);
    column.fill(&mut recorder, || random.u64(..column.table_count));
    recorder.run(Scatter {
        source: column.elements,
        index: 0,
        table: column.table,
        table_count: column.table_count,
        count: column.count,
        element: Element::U64,
    });
    recorder.finish()
}

/// Numbers are read from random places of a table, nine of ten from its first tenth, three times.
fn skewed_gather(bytes: usize) -> Trace {
    let column = Column::new(bytes);
    let mut recorder = Recorder::new(bytes);
    let mut random = fastrand::Rng::with_seed(3);
    let hot = column.table_count / 10;
    column.fill(&mut recorder, || {
        if random.u32(..10) < 9 {
            random.u64(..hot)
        } else {
            random.u64(hot..column.table_count)
        }
    });
    for _ in 0..3 {
        recorder.run(Gather {
            table: column.table,
            table_count: column.table_count,
            index: 0,
            destination: column.elements,
            count: column.count,
            element: Element::U64,
        });
    }
    recorder.finish()
}

/// Nodes of four lines in random order: value, next, left, right. Returns the first one's address.
fn nodes(recorder: &mut Recorder) -> u64 {
    const WORDS: usize = 32;
    let memory = recorder.memory();
    // None is at address zero.
    let mut nodes: Vec<usize> = (1..memory.len() / WORDS).collect();
    fastrand::Rng::with_seed(4).shuffle(&mut nodes);
    let address = |index: usize| nodes.get(index).map_or(0, |node| (node * WORDS * 8) as u64);
    for (index, node) in nodes.iter().enumerate() {
        let words = [
            index as u64,
            address(index + 1),
            address(2 * index + 1),
            address(2 * index + 2),
        ];
        memory[node * WORDS..node * WORDS + 4].copy_from_slice(&words);
    }
    address(0)
}

/// A list is walked from end to end, three times.
fn list(bytes: usize) -> Trace {
    let mut recorder = Recorder::new(bytes);
    let head = nodes(&mut recorder);
    for _ in 0..3 {
        recorder.run(ListWalk {
            head,
            next_offset: 8,
            value_offset: 0,
            key: u64::MAX,
            limit: u64::MAX,
        });
    }
    recorder.finish()
}

/// A tree is summed up, three times.
fn tree(bytes: usize) -> Trace {
    let mut recorder = Recorder::new(bytes);
    let root = nodes(&mut recorder);
    for _ in 0..3 {
        recorder.run(TreeSum {
            root,
            left_offset: 16,
            right_offset: 24,
            value_offset: 0,
            limit: u64::MAX,
        });
    }
    recorder.finish()
}

/// A random graph is searched, breadth first: sixteen edges for each vertex, and a quarter of the
/// memory of other runs, because each edge is a random access.
fn bfs(bytes: usize) -> Trace {
    const DEGREE: usize = 16;
    // For each vertex: where its edges begin, the edges, its level, and its place in the queue.
    let vertices = bytes / 4 / (8 + 4 * DEGREE + 4 + 4);
    let edges = vertices * DEGREE;
    let edges_start = 8 * (vertices + 1);
    let levels = edges_start + 4 * edges;
    let queue = levels + 4 * vertices;
    let mut recorder = Recorder::new(queue + 4 * vertices);
    let mut random = fastrand::Rng::with_seed(5);
    let memory = recorder.memory();
    for (vertex, start) in memory[..=vertices].iter_mut().enumerate() {
        *start = (vertex * DEGREE) as u64;
    }
    let most = u32::try_from(vertices).expect("a small graph");
    let targets = &mut memory.as_mut_bytes()[edges_start..levels];
    let targets = <[u32]>::mut_from_bytes(targets).expect("the edges are aligned");
    targets.fill_with(|| random.u32(..most));
    recorder.run(Bfs {
        offsets: 0,
        edges: edges_start as u64,
        vertex_count: vertices as u64,
        edge_count: edges as u64,
        start: 0,
        levels: levels as u64,
        queue: queue as u64,
    });
    recorder.finish()
}
