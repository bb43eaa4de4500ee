//! Jobs on mapped memory: what engines, steps and translation add to the work itself.
//!
//! The reference of a stream is the same operation on the same bytes without pages, engines or
//! locks. The bench `operations` shows the cost of the operations against plain code. The reference
//! of `memcpy`, `memset` and the walks is plain code.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hmm_bench::{Bench, Per, Turn};
use vhost_device_hmm::device::operations::{Fault, Memory, Step, Width, Work};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{
    Axpy, Checksum, Compare, Copy, Dot, Element, Fill, Gemm, Histogram, ListWalk, Operation, Sum,
};
use virtio_hmm_spec::wire::rights;

use crate::machine::{all_of, index, shuffled, Leaves, Machine, Plain, BASE};

/// Bytes of one operand: far more than a cache near the processor holds.
const BYTES: u64 = 64 << 20;

/// Rows and columns of the matrices.
pub(crate) const ORDER: u64 = 512;

/// Tiny jobs in a round.
const JOBS: u64 = 200;

/// Measures streams, walks and the way of a job through the schedule.
pub(crate) fn measure(bench: &mut Bench) {
    let machine = Machine::new();
    bench.group("jobs");
    bench.alone("one job, submission to end", Per::Times(JOBS), || {
        let tiny = Sum {
            source: BASE,
            count: 1,
            element: Element::U64,
        };
        (0..JOBS)
            .map(|_| machine.run(Leaves::Small, tiny))
            .sum::<Result<Duration, String>>()
    });
    streams(bench, &machine);
    for (name, leaves, nodes, spacing) in [
        // 4 MiB: the TLB holds it either way.
        ("list of 4 MiB", Leaves::Small, 64 << 10, 64),
        ("list of 4 MiB", Leaves::Large, 64 << 10, 64),
        // 50 MiB: more than 4 KiB entries span.
        ("list of 50 MiB", Leaves::Small, 200_000, 256),
        ("list of 50 MiB", Leaves::Large, 200_000, 256),
    ] {
        walk(
            bench,
            &machine,
            &format!("{name}, a hop, {}", leaves.name()),
            leaves,
            (nodes, spacing),
        );
    }
}

/// The product of two consecutive matrices at an address; the result follows them.
pub(crate) fn gemm(a: u64) -> Operation {
    let bytes = ORDER * ORDER * 4;
    Gemm {
        a,
        b: a + bytes,
        c: a + 2 * bytes,
        m: ORDER,
        n: ORDER,
        k: ORDER,
        a_stride: ORDER,
        b_stride: ORDER,
        c_stride: ORDER,
        alpha: 1.0,
        beta: 0.0,
    }
    .into()
}

/// The streaming operations, and the bytes of each.
fn operations() -> [(&'static str, Per, Operation); 9] {
    let (x, y, element) = (BASE, BASE + BYTES, Element::F32);
    let (bytes, count) = (BYTES, BYTES / 4);
    [
        (
            "fill",
            Per::Bytes(bytes),
            Fill {
                destination: x,
                bytes,
                pattern: 0x3f80_0000_3f80_0000,
            }
            .into(),
        ),
        (
            "copy",
            Per::Bytes(bytes),
            Copy {
                source: x,
                destination: y,
                bytes,
            }
            .into(),
        ),
        (
            "compare",
            Per::Bytes(bytes),
            Compare {
                left: x,
                right: y,
                bytes,
            }
            .into(),
        ),
        (
            "checksum",
            Per::Bytes(bytes),
            Checksum { source: x, bytes }.into(),
        ),
        (
            "sum f32",
            Per::Bytes(bytes),
            Sum {
                source: x,
                count,
                element,
            }
            .into(),
        ),
        (
            "dot f32",
            Per::Bytes(2 * bytes),
            Dot {
                x,
                y,
                count,
                element,
            }
            .into(),
        ),
        (
            "axpy f32",
            Per::Bytes(3 * bytes),
            Axpy {
                x,
                y,
                count,
                element,
                alpha: 0.5,
            }
            .into(),
        ),
        (
            "histogram",
            Per::Bytes(bytes),
            Histogram {
                source: x,
                bytes,
                counters: y,
            }
            .into(),
        ),
        ("gemm 512", Per::Flops(2 * ORDER * ORDER * ORDER), gemm(x)),
    ]
}

fn streams(bench: &mut Bench, machine: &Machine) {
    let memory = all_of(&machine.system);
    for (name, per, operation) in operations() {
        for leaves in [Leaves::Small, Leaves::Large] {
            bench.pair(
                &format!("{name}, {}", leaves.name()),
                per,
                "without pages",
                |turn| match turn {
                    Turn::Measured => machine.run(leaves, operation),
                    Turn::Reference => without_pages(memory, operation),
                },
            );
        }
        let plain: Option<(_, fn(Plain<'_>))> = match operation {
            Operation::Fill(_) => Some(("memset", |memory| {
                memory.part(0..index(BYTES)).write_all(0x3f);
            })),
            Operation::Copy(_) => Some(("memcpy", |memory| {
                let to = memory.part(index(BYTES)..index(2 * BYTES));
                memory.part(0..index(BYTES)).copy_to(&to);
            })),
            _ => None,
        };
        let Some((reference, plain)) = plain else {
            continue;
        };
        let all = format!("{name} as plain code does, {}", Leaves::Large.name());
        bench.pair(&all, per, reference, |turn| match turn {
            Turn::Measured => machine.run(Leaves::Large, operation),
            Turn::Reference => {
                let start = Instant::now();
                plain(memory);
                Ok(start.elapsed())
            }
        });
    }
}

/// Walks a list whose nodes are in shuffled order, `spacing` bytes apart.
fn walk(
    bench: &mut Bench,
    machine: &Machine,
    name: &str,
    leaves: Leaves,
    (nodes, spacing): (u64, u64),
) {
    let words = all_of(&machine.system).words();
    let order = shuffled(nodes);
    let address = |node: u64| BASE + node * spacing;
    let word = |address: u64| &words[index((address - BASE) / 8)];
    // A node is the address of the next one, then a value.
    for pair in order.windows(2) {
        word(address(pair[0])).store(address(pair[1]), Ordering::Relaxed);
    }
    for &node in &order {
        word(address(node) + 8).store(node, Ordering::Relaxed);
    }
    let (head, last) = (order[0], order[order.len() - 1]);
    word(address(last)).store(0, Ordering::Relaxed);
    let job = ListWalk {
        head: address(head),
        next_offset: 0,
        value_offset: 8,
        key: u64::MAX,
        limit: u64::MAX,
    };
    bench.pair(name, Per::Times(nodes), "plain walk", |turn| match turn {
        Turn::Measured => machine.run(leaves, job),
        Turn::Reference => Ok(plain_walk(words, address(head))),
    });
}

fn plain_walk(words: &[AtomicU64], head: u64) -> Duration {
    let start = Instant::now();
    let (mut node, mut sum, mut found) = (head, 0_u64, 0);
    while node != 0 {
        let place = index((node - BASE) / 8);
        let value = words[place + 1].load(Ordering::Relaxed);
        if value == u64::MAX && found == 0 {
            found = node;
        }
        sum = sum.wrapping_add(value);
        node = words[place].load(Ordering::Relaxed);
    }
    black_box((sum, found));
    start.elapsed()
}

/// Runs an operation's steps without an engine, on memory without pages.
fn without_pages(memory: Plain<'_>, operation: Operation) -> Result<Duration, String> {
    let start = Instant::now();
    let mut work = Work::new(operation).map_err(|status| format!("{status:?}"))?;
    let mut flat = Flat(memory);
    loop {
        match work.step(&mut flat) {
            Ok(Step::More) => {}
            Ok(Step::Done(Status::Ok, values)) => {
                black_box(values);
                return Ok(start.elapsed());
            }
            other => return Err(format!("the operation did not end well: {other:?}")),
        }
    }
}

/// Memory that is fully present, from [`BASE`] on.
struct Flat<'a>(Plain<'a>);

impl<'a> Flat<'a> {
    fn part(&self, address: u64, bytes: usize, access: u32) -> Result<Plain<'a>, Fault> {
        let fault = Fault { address, access };
        let start = address.checked_sub(BASE).ok_or(fault)?;
        let start = usize::try_from(start).map_err(|_| fault)?;
        let part = self.0 .0.subslice(start, bytes).map_err(|_| fault)?;
        Ok(Plain(part))
    }
}

impl Memory for Flat<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.part(address, into.len(), rights::READ)?
            .0
            .copy_to(into);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), Fault> {
        self.part(address, from.len(), rights::WRITE)?
            .0
            .copy_from(from);
        Ok(())
    }

    fn load(&mut self, address: u64) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn reserve(&mut self, address: u64, bytes: u64) -> Result<(), Fault> {
        self.part(address, index(bytes), rights::WRITE).map(|_| ())
    }

    fn update(
        &mut self,
        address: u64,
        width: Width,
        mut update: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, Fault> {
        // No stream needs atomicity here: plain, not atomic.
        let mut bytes = [0; 8];
        let count = match width {
            Width::U32 => 4,
            Width::U64 => 8,
        };
        self.read(address, &mut bytes[..count])?;
        let old = u64::from_le_bytes(bytes);
        if let Some(new) = update(old) {
            self.write(address, &new.to_le_bytes()[..count])?;
        }
        Ok(old)
    }

    fn expect(&mut self, _: u64, _: u64, _: u32) {}
}
