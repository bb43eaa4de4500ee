//! The cost of an operation in steps, against plain code on the same bytes.
//!
//! `cargo bench -p vhost-device-hmm --bench operations [MEBIBYTES]` prints for each operation the
//! throughput of plain code, that of the operation, their ratio, and the median and the longest
//! step. Plain code and operation take turns, and the best of several rounds counts, so that other
//! work on the machine disturbs both alike. Both are measured in the processor time of the thread.
//! There are no pages, translations or locks here: these are added by the rest of the daemon.

use hmm_cli::say;
use multiversion::multiversion;
use nix::time::{clock_gettime, ClockId};
use std::hint::black_box;
use std::time::{Duration, Instant};
use vhost_device_hmm::device::operations::{Fault, Memory, Step, Width, Work};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{
    Axpy, Bfs, Checksum, Compare, Copy, Dot, Element, Fill, Gather, Gemm, Histogram, ListWalk, Max,
    Operation, Scatter, Sort, Sum, TreeSum,
};
use zerocopy::{FromBytes, IntoBytes};

/// Rounds of plain code and operation, at least.
const ROUNDS: usize = 7;

/// Time for each operation, if the rounds do not take longer.
const TIME: Duration = Duration::from_secs(1);

/// Memory that is fully present, from address zero on.
struct Flat<'a>(&'a mut [u64]);

impl Flat<'_> {
    fn range(&self, address: u64, bytes: usize, access: u32) -> Result<usize, Fault> {
        usize::try_from(address)
            .ok()
            .filter(|start| {
                start
                    .checked_add(bytes)
                    .is_some_and(|end| end <= self.0.len() * 8)
            })
            .ok_or(Fault { address, access })
    }
}

impl Memory for Flat<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        let start = self.range(address, into.len(), 1)?;
        into.copy_from_slice(&self.0.as_bytes()[start..start + into.len()]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let start = self.range(address, from.len(), 2)?;
        self.0.as_mut_bytes()[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }

    fn load(&mut self, address: u64) -> Result<u64, Fault> {
        let start = self.range(address, 8, 1)?;
        u64::read_from_prefix(&self.0.as_bytes()[start..])
            .map(|(value, _)| value)
            .map_err(|_| Fault { address, access: 1 })
    }

    fn copy(&mut self, source: u64, destination: u64, bytes: usize) -> Result<(), Fault> {
        let (from, to) = (
            self.range(source, bytes, 1)?,
            self.range(destination, bytes, 2)?,
        );
        self.0.as_mut_bytes().copy_within(from..from + bytes, to);
        Ok(())
    }

    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        let bytes = usize::try_from(bytes).map_err(|_| Fault { address, access: 2 })?;
        self.range(address, bytes, 2).map(|_| ())
    }

    fn update(
        &mut self,
        address: u64,
        _: Width,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault> {
        let old = self.load(address)?;
        if let Some(new) = update(old) {
            self.write(address, &new.to_le_bytes())?;
        }
        Ok(old)
    }

    fn expect(&mut self, _: u64, _: u64, _: u32) {}
}

/// Splits memory into typed slices: `count` elements from an address on.
fn part<T: FromBytes + zerocopy::Immutable>(memory: &[u64], address: usize, count: usize) -> &[T] {
    let bytes = &memory.as_bytes()[address..address + count * size_of::<T>()];
    <[T]>::ref_from_bytes(bytes).expect("the bench's addresses are aligned")
}

/// Two parts, one after the other.
fn parts<T: FromBytes + IntoBytes>(memory: &mut [u64], count: usize) -> (&mut [T], &mut [T]) {
    let bytes = &mut memory.as_mut_bytes()[..2 * count * size_of::<T>()];
    <[T]>::mut_from_bytes(bytes)
        .expect("the bench's addresses are aligned")
        .split_at_mut(count)
}

macro_rules! plain {
    ($( fn $name:ident($($argument:ident: $type:ty),+) $(-> $result:ty)? $body:block )+) => { $(
        #[multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512dq+avx512vl",
            "x86_64+avx2",
        ))]
        fn $name($($argument: $type),+) $(-> $result)? $body
    )+ };
}

plain! {
    fn sum_f32(values: &[f32]) -> f64 {
        let mut lanes = [0.0; 32];
        for chunk in values.chunks_exact(32) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*value);
            }
        }
        lanes.iter().sum()
    }

    fn sum_u64(values: &[u64]) -> u64 {
        values.iter().fold(0, |sum, value| sum.wrapping_add(*value))
    }

    fn max_f32(values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 32];
        for chunk in values.chunks_exact(32) {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane = if *value > *lane { *value } else { *lane };
            }
        }
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    fn dot_f32(x: &[f32], y: &[f32]) -> f64 {
        let mut lanes = [0.0; 32];
        for (x, y) in x.chunks_exact(32).zip(y.chunks_exact(32)) {
            for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
                *lane += f64::from(*x) * f64::from(*y);
            }
        }
        lanes.iter().sum()
    }

    fn axpy_f32(alpha: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += alpha * x;
        }
    }
}

/// How often each byte occurs.
fn histogram(bytes: &[u8]) -> [u64; 256] {
    let mut tables = [[0; 256]; 4];
    for word in bytes.chunks_exact(4) {
        for (table, byte) in tables.iter_mut().zip(word) {
            table[usize::from(*byte)] += 1;
        }
    }
    std::array::from_fn(|i| tables.iter().map(|table| table[i]).sum())
}

/// Runs an operation and records how long its steps take.
fn run(memory: &mut [u64], operation: Operation, steps: &mut Vec<Duration>) {
    let mut work = Work::new(operation).expect("the arguments are good");
    let mut flat = Flat(memory);
    steps.clear();
    loop {
        let start = Instant::now();
        let step = work.step(&mut flat).expect("everything is mapped");
        steps.push(start.elapsed());
        if let Step::Done(status, results) = step {
            assert_eq!(status, Status::Ok);
            black_box(results);
            return;
        }
    }
}

/// The processor time used by this thread.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("every Linux has this clock")
        .into()
}

/// Compares an operation on `units` of something with plain code.
fn compare(
    (name, units, unit): (&str, usize, &str),
    memory: &mut [u64],
    operation: impl Into<Operation>,
    mut prepare: impl FnMut(&mut [u64]),
    mut plain: impl FnMut(&mut [u64]),
) {
    let operation = operation.into();
    let (mut best_plain, mut best_run) = (Duration::MAX, Duration::MAX);
    let (mut steps, mut median, mut longest) = (Vec::new(), Duration::MAX, Duration::MAX);
    let begin = Instant::now();
    for _ in (0..).take_while(|round| *round < ROUNDS || begin.elapsed() < TIME) {
        prepare(memory);
        let start = processor_time();
        plain(memory);
        best_plain = best_plain.min(processor_time() - start);
        prepare(memory);
        let start = processor_time();
        run(memory, operation, &mut steps);
        best_run = best_run.min(processor_time() - start);
        steps.sort_unstable();
        median = median.min(steps[steps.len() / 2]);
        longest = longest.min(steps[steps.len() - 1]);
    }
    #[expect(clippy::cast_precision_loss, reason = "for a table")]
    let rate = |time: Duration| units as f64 / time.as_secs_f64() / 1e9;
    say!(
        "{name:<12} {:>9.3} {:>9.3} {unit:<8} {:>6.2} {:>9.1} {:>9.1}",
        rate(best_plain),
        rate(best_run),
        rate(best_run) / rate(best_plain),
        median.as_secs_f64() * 1e6,
        longest.as_secs_f64() * 1e6,
    );
}

/// A small generator (xorshift).
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Fills memory with random words.
fn randomise(memory: &mut [u64]) {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    memory.fill_with(|| random(&mut seed));
}

/// A random permutation of `count` numbers.
fn permutation(count: usize) -> Vec<usize> {
    let mut seed = 0x1234_5678_9abc_def1;
    let mut numbers: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        let other = random(&mut seed) % (i as u64 + 1);
        numbers.swap(i, usize::try_from(other).expect("an index"));
    }
    numbers
}

fn streams(memory: &mut [u64], bytes: usize) {
    let half = bytes as u64;
    let none = |_: &mut [u64]| {};
    let all = bytes as u64;
    compare(
        ("fill", bytes, "GB/s"),
        memory,
        Fill {
            destination: 0,
            bytes: all,
            pattern: 7,
        },
        none,
        |memory| memory[..bytes / 8].fill(black_box(7)),
    );
    randomise(memory);
    compare(
        ("copy", bytes, "GB/s"),
        memory,
        Copy {
            source: 0,
            destination: half,
            bytes: all,
        },
        none,
        |memory| memory.copy_within(..bytes / 8, bytes / 8),
    );
    compare(
        ("move", bytes, "GB/s"),
        memory,
        Copy {
            source: 0,
            destination: 4096,
            bytes: all,
        },
        none,
        |memory| memory.copy_within(..bytes / 8, 512),
    );
    memory.copy_within(..bytes / 8, bytes / 8);
    compare(
        ("compare", bytes, "GB/s"),
        memory,
        Compare {
            left: 0,
            right: half,
            bytes: all,
        },
        none,
        |memory| {
            let (left, right) = parts::<u8>(memory, bytes);
            black_box(left == right);
        },
    );
    compare(
        ("checksum", bytes, "GB/s"),
        memory,
        Checksum {
            source: 0,
            bytes: all,
        },
        none,
        |memory| {
            black_box(crc32c::crc32c(part(memory, 0, bytes)));
        },
    );
    let count = all / 8;
    compare(
        ("sum u64", bytes, "GB/s"),
        memory,
        Sum {
            source: 0,
            count,
            element: Element::U64,
        },
        none,
        |memory| {
            black_box(sum_u64(part(memory, 0, bytes / 8)));
        },
    );
    compare(
        ("histogram", bytes, "GB/s"),
        memory,
        Histogram {
            source: 0,
            bytes: all,
            counters: half,
        },
        none,
        |memory| {
            black_box(histogram(part(memory, 0, bytes)));
        },
    );
}

fn floats(memory: &mut [u64], bytes: usize) {
    let none = |_: &mut [u64]| {};
    let (x, y, element) = (0, bytes as u64, Element::F32);
    let (x_values, y_values) = parts::<f32>(memory, bytes / 4);
    for (i, value) in x_values.iter_mut().chain(y_values).enumerate() {
        *value = f32::from(u16::try_from(i % 1000).expect("small"));
    }
    let count = bytes as u64 / 4;
    compare(
        ("sum f32", bytes, "GB/s"),
        memory,
        Sum {
            source: x,
            count,
            element,
        },
        none,
        |memory| {
            black_box(sum_f32(part(memory, 0, bytes / 4)));
        },
    );
    compare(
        ("max f32", bytes, "GB/s"),
        memory,
        Max {
            source: x,
            count,
            element,
        },
        none,
        |memory| {
            black_box(max_f32(part(memory, 0, bytes / 4)));
        },
    );
    compare(
        ("dot f32", 2 * bytes, "GB/s"),
        memory,
        Dot {
            x,
            y,
            count,
            element,
        },
        none,
        |memory| {
            let (x, y) = parts::<f32>(memory, bytes / 4);
            black_box(dot_f32(x, y));
        },
    );
    compare(
        ("axpy f32", 3 * bytes, "GB/s"),
        memory,
        Axpy {
            x,
            y,
            count,
            element,
            alpha: 0.5,
        },
        none,
        |memory| {
            let (x, y) = parts::<f32>(memory, bytes / 4);
            axpy_f32(0.5, x, y);
        },
    );
}

fn matrices(memory: &mut [u64], size: usize) {
    let (side, stride) = (size, size as u64);
    let area = side * side;
    for value in parts::<f32>(memory, 3 * area).0 {
        *value = 0.5;
    }
    let bytes = (area * 4) as u64;
    let operation = Gemm {
        a: 0,
        b: bytes,
        c: 2 * bytes,
        m: stride,
        n: stride,
        k: stride,
        a_stride: stride,
        b_stride: stride,
        c_stride: stride,
        alpha: 1.0,
        beta: 0.0,
    };
    let name = format!("gemm {size}");
    compare(
        (&name, 2 * side * side * side, "GFLOP/s"),
        memory,
        operation,
        |_| {},
        |memory| {
            let (inputs, outputs) = memory.as_mut_bytes().split_at_mut(area * 8);
            let inputs = <[f32]>::ref_from_bytes(inputs).expect("aligned");
            let outputs = <[f32]>::mut_from_bytes(&mut outputs[..area * 4]).expect("aligned");
            let (a, b) = inputs.split_at(area);
            let a = ndarray::ArrayView2::from_shape((side, side), a).expect("its shape");
            let b = ndarray::ArrayView2::from_shape((side, side), b).expect("its shape");
            let mut c =
                ndarray::ArrayViewMut2::from_shape((side, side), outputs).expect("its shape");
            ndarray::linalg::general_mat_mul(1.0, &a, &b, 0.0, &mut c);
        },
    );
}

fn sort(memory: &mut [u64], name: &str, count: usize, prepare: impl Fn(&mut [u64])) {
    let operation = Sort {
        data: 0,
        count: count as u64,
        temporary: 8 * count as u64,
    };
    compare(
        (name, count, "Gelem/s"),
        memory,
        operation,
        prepare,
        |memory| {
            memory[..count].sort_unstable();
        },
    );
}

fn indices(memory: &mut [u64], count: usize) {
    let none = |_: &mut [u64]| {};
    for (word, index) in memory.iter_mut().zip(permutation(count)) {
        *word = index as u64;
    }
    let (index, table, run) = (0, 8 * count as u64, 16 * count as u64);
    let (count, table_count, element) = (count as u64, count as u64, Element::U64);
    let operation = Gather {
        table,
        table_count,
        index,
        destination: run,
        count,
        element,
    };
    let elements = table_count;
    let at = |i: u64| usize::try_from(i).expect("an index");
    compare(
        ("gather", at(count), "Gelem/s"),
        memory,
        operation,
        none,
        |memory| {
            let (index, rest) = memory.split_at_mut(at(elements));
            let (table, run) = rest.split_at_mut(at(elements));
            for (run, index) in run.iter_mut().zip(index) {
                *run = table[at(*index)];
            }
        },
    );
    let operation = Scatter {
        source: run,
        index,
        table,
        table_count,
        count,
        element,
    };
    compare(
        ("scatter", at(count), "Gelem/s"),
        memory,
        operation,
        none,
        |memory| {
            let (index, rest) = memory.split_at_mut(at(elements));
            let (table, run) = rest.split_at_mut(at(elements));
            for (run, index) in run.iter().zip(index) {
                table[at(*index)] = *run;
            }
        },
    );
}

fn pointers(memory: &mut [u64], count: usize) {
    let none = |_: &mut [u64]| {};
    // Nodes of 64 bytes, none at address zero: value, next, left, right.
    let nodes: Vec<usize> = permutation(count)
        .iter()
        .map(|place| (place + 1) * 8)
        .collect();
    let address = |i: usize| nodes.get(i).map_or(0, |node| *node as u64 * 8);
    for (i, node) in nodes.iter().enumerate() {
        let words = [
            i as u64,
            address(i + 1),
            address(2 * i + 1),
            address(2 * i + 2),
        ];
        memory[*node..node + 4].copy_from_slice(&words);
    }
    let head = address(0);
    let at = |address: u64| usize::try_from(address / 8).expect("an address");
    let walk = ListWalk {
        head,
        next_offset: 8,
        value_offset: 0,
        key: u64::MAX,
        limit: u64::MAX,
    };
    compare(
        ("list walk", count, "Ghop/s"),
        memory,
        walk,
        none,
        |memory| {
            let (mut node, mut sum, mut found) = (head, 0_u64, 0);
            while node != 0 {
                let value = memory[at(node)];
                if value == u64::MAX && found == 0 {
                    found = node;
                }
                sum = sum.wrapping_add(value);
                node = memory[at(node) + 1];
            }
            black_box((sum, found));
        },
    );
    let tree = TreeSum {
        root: head,
        left_offset: 16,
        right_offset: 24,
        value_offset: 0,
        limit: u64::MAX,
    };
    compare(
        ("tree sum", count, "Gnode/s"),
        memory,
        tree,
        none,
        |memory| {
            let (mut stack, mut sum) = (vec![head], 0_u64);
            while let Some(node) = stack.pop() {
                sum = sum.wrapping_add(memory[at(node)]);
                stack.extend(
                    memory[at(node) + 2..at(node) + 4]
                        .iter()
                        .filter(|node| **node != 0),
                );
            }
            black_box(sum);
        },
    );
}

fn graph(memory: &mut [u64], vertices: usize, degree: usize) {
    let edges = vertices * degree;
    let offsets_end = 8 * (vertices + 1);
    let (levels, queue) = (
        offsets_end + 4 * edges,
        offsets_end + 4 * (edges + vertices),
    );
    let at = |index: u32| usize::try_from(index).expect("an index");
    let mut seed = 77;
    for (i, offset) in memory[..=vertices].iter_mut().enumerate() {
        *offset = (i * degree) as u64;
    }
    let targets = &mut memory.as_mut_bytes()[offsets_end..levels];
    for target in <[u32]>::mut_from_bytes(targets).expect("aligned") {
        *target = u32::try_from(random(&mut seed) % vertices as u64).expect("a vertex");
    }
    let operation = Bfs {
        offsets: 0,
        edges: offsets_end as u64,
        vertex_count: vertices as u64,
        edge_count: edges as u64,
        start: 0,
        levels: levels as u64,
        queue: queue as u64,
    };
    compare(
        ("bfs", edges, "Gedge/s"),
        memory,
        operation,
        |_| {},
        |memory| {
            let (graph, rest) = memory.as_mut_bytes().split_at_mut(levels);
            let (offsets, targets) = graph.split_at(offsets_end);
            let offsets = <[u64]>::ref_from_bytes(offsets).expect("aligned");
            let targets = <[u32]>::ref_from_bytes(targets).expect("aligned");
            let (levels, queue) = rest[..8 * vertices].split_at_mut(4 * vertices);
            let levels = <[u32]>::mut_from_bytes(levels).expect("aligned");
            let queue = <[u32]>::mut_from_bytes(queue).expect("aligned");
            levels.fill(u32::MAX);
            (levels[0], queue[0]) = (0, 0);
            let (mut head, mut tail) = (0, 1);
            while head < tail {
                let vertex = at(queue[head]);
                head += 1;
                let edge = |i: usize| usize::try_from(offsets[i]).expect("an index");
                for target in &targets[edge(vertex)..edge(vertex + 1)] {
                    if levels[at(*target)] == u32::MAX {
                        levels[at(*target)] = levels[vertex] + 1;
                        queue[tail] = *target;
                        tail += 1;
                    }
                }
            }
        },
    );
}

fn main() {
    let wanted = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse::<usize>().ok());
    let bytes = wanted.unwrap_or(64).clamp(8, 1 << 16) << 20;
    // Twice the streams, but at least the size of three matrices.
    let mut memory = vec![1_u64; (bytes / 4).max(2 << 20)];
    say!("{} MiB; best of at least {ROUNDS} rounds", bytes >> 20);
    say!(
        "{:<12} {:>9} {:>9} {:<8} {:>6} {:>9} {:>9}",
        "",
        "plain",
        "steps",
        "",
        "ratio",
        "median µs",
        "most µs"
    );
    streams(&mut memory, bytes);
    floats(&mut memory, bytes);
    matrices(&mut memory, 512);
    matrices(&mut memory, 1024);
    sort(&mut memory, "sort", bytes / 8, randomise);
    sort(&mut memory, "sort 32 bit", bytes / 8, |memory| {
        randomise(memory);
        memory.iter_mut().for_each(|word| *word >>= 32);
    });
    indices(&mut memory, bytes / 16);
    pointers(&mut memory, (bytes / 64).min(200_000));
    graph(&mut memory, 100_000, 10);
}
