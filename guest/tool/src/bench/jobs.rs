//! Jobs on memory that the device has mapped already.

use std::hint::black_box;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use fastrand::Rng;
use hmm::work::{self, ListLayout};
use hmm::Space;
use hmm_bench::{Bench, Per, Turn};
use hmm_tool::buffer::{Buffer, Pages};

use super::timing::timed;

/// Jobs in a round.
const JOBS: usize = 64;

/// Nodes of the list.
const NODES: usize = 200_000;

/// Words from one node to the next: a cache line.
const SPACING: usize = 8;

/// Measures how long a job takes through the driver and the device, and a walk.
pub(super) fn measure(bench: &mut Bench, space: &Space) -> Result<()> {
    bench.group("jobs in the guest");
    latency(bench, space)?;
    walk(bench, space)
}

fn latency(bench: &mut Bench, space: &Space) -> Result<()> {
    let buffer = Buffer::filled(space, 4096, Pages::Small)?;
    let one = || work::sum(&buffer.words()[..8]);
    let echo = Echo::start()?;
    let count = Per::Times(JOBS as u64);
    bench.pair(
        "a job, submission to end",
        count,
        "to another thread and back",
        |turn| match turn {
            Turn::Measured => timed(|| (0..JOBS).try_for_each(|_| space.run(one()).map(|_| ())))
                .map_err(anyhow::Error::from),
            Turn::Reference => timed(|| (0..JOBS).try_for_each(|_| echo.call())),
        },
    );
    bench.alone("a job among 64 in flight", count, || {
        timed(|| {
            let results = space.run_all((0..JOBS).map(|_| one()));
            results
                .into_iter()
                .try_for_each(|result| result.map(|_| ()))
        })
    });
    Ok(())
}

/// Walks a list in shuffled order.
fn walk(bench: &mut Bench, space: &Space) -> Result<()> {
    let mut list = Buffer::filled(space, NODES * SPACING * size_of::<u64>(), Pages::Small)?;
    let start = list.words().as_ptr().addr();
    let address = |node: usize| start + node * SPACING * size_of::<u64>();
    let mut order: Vec<usize> = (0..NODES).collect();
    Rng::with_seed(1).shuffle(&mut order);
    let words = list.words_mut();
    // A node consists of the address of the next one and a value.
    for (position, &node) in order.iter().enumerate() {
        let next = order.get(position + 1).map_or(0, |&next| address(next));
        words[node * SPACING] = next as u64;
        words[node * SPACING + 1] = node as u64;
    }
    let words = list.words();
    let head = &words[order[0] * SPACING];
    let layout = ListLayout { next: 0, value: 8 };
    let index =
        |address: u64| usize::try_from(address).map_or(0, |a| (a - start) / size_of::<u64>());
    let name = "list of 200,000 nodes, a hop";
    bench.pair(name, Per::Times(NODES as u64), "the CPU", |turn| {
        let start = Instant::now();
        match turn {
            Turn::Measured => {
                let walk = work::list_walk(head, layout, u64::MAX, u64::MAX);
                let summary = space.run(walk)?.value;
                ensure!(summary.nodes == NODES as u64, "the walk found {summary:?}");
            }
            Turn::Reference => {
                let (mut node, mut sum, mut found) = (address(order[0]) as u64, 0_u64, 0);
                while node != 0 {
                    let at = index(node);
                    let value = words[at + 1];
                    if value == u64::MAX && found == 0 {
                        found = node;
                    }
                    sum = sum.wrapping_add(value);
                    node = words[at];
                }
                black_box((sum, found));
            }
        }
        Ok(start.elapsed())
    });
    Ok(())
}

/// A thread that answers, to measure the cost of waking a thread and being woken.
struct Echo {
    to: mpsc::Sender<()>,
    from: mpsc::Receiver<()>,
}

impl Echo {
    fn start() -> Result<Self> {
        let (to, calls) = mpsc::channel::<()>();
        let (answer, from) = mpsc::channel();
        let body = move || {
            // Ends when the other side is gone.
            while calls.recv().is_ok() && answer.send(()).is_ok() {}
        };
        thread::Builder::new()
            .name("echo".into())
            .spawn(body)
            .context("starting a thread")?;
        Ok(Self { to, from })
    }

    fn call(&self) -> Result<()> {
        self.to.send(())?;
        Ok(self.from.recv()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_other_thread_answers_every_call() {
        let echo = Echo::start().unwrap();
        let time = timed(|| (0..10).try_for_each(|_| echo.call())).unwrap();
        assert!(time > Duration::ZERO);
    }
}
