//! A tour of the device in Rust: an array and a list on it, and a job that is cancelled.
//!
//! `docs/languages.md` says how to build and run it.

// The plainest way to print, as the programs in C and Python do.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::mem::offset_of;
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hmm::work::{self, ListLayout};
use hmm::{Destination, Device, Error, PageRange, Place, Progress, Space};

const COUNT: u64 = 1 << 20;
const NODES: u64 = 1000;

struct Node {
    next: *const Node,
    value: u64,
}

fn main() -> ExitCode {
    let path = std::env::args().nth(1);
    match tour(path.as_deref().unwrap_or("/dev/hmm0")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tour: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tour(path: &str) -> Result<(), Error> {
    let space = Device::open(path)?.bind()?;
    println!("device: {} MiB", space.device().info()?.device_memory >> 20);
    array(&space)?;
    list(&space)?;
    cancel(&space)
}

/// How many pages of a slice are on the device.
fn pages_on_device(space: &Space, range: PageRange) -> Result<usize, Error> {
    let pages = space.residency(range)?;
    let there = pages.iter().filter(|page| page.place() == Place::Device);
    Ok(there.count())
}

/// An array moves to the device, and is added up there.
fn array(space: &Space) -> Result<(), Error> {
    let numbers: Vec<u64> = (0..COUNT).collect();
    let range = PageRange::covering(&numbers);
    let migration = space.migrate(range, Destination::Device)?;
    println!("moved: {} of {} pages", migration.moved, range.pages());
    println!("sum: {}", space.run(work::sum(&numbers))?.value);
    println!("on the device: {}", pages_on_device(space, range)?);
    // The CPU needs them now, and they come back by themselves.
    println!("sum by the CPU: {}", numbers.iter().sum::<u64>());
    println!("on the device: {}", pages_on_device(space, range)?);
    Ok(())
}

/// The device follows the program's own pointers.
fn list(space: &Space) -> Result<(), Error> {
    let mut nodes: Vec<Node> = (0..NODES)
        .map(|value| Node {
            next: std::ptr::null(),
            value,
        })
        .collect();
    for index in 1..nodes.len() {
        nodes[index - 1].next = &raw const nodes[index];
    }
    let layout = ListLayout {
        next: offset_of!(Node, next),
        value: offset_of!(Node, value),
    };
    let walk = work::list_walk(nodes.as_ptr(), layout, 7, NODES);
    let list = space.run(walk)?.value;
    let first = nodes.as_ptr().addr() as u64;
    let place = list.found.map_or(0, |address| address - first) / size_of::<Node>() as u64;
    println!(
        "list: {} nodes, sum {}, 7 is in node {place}",
        list.nodes, list.sum
    );
    Ok(())
}

/// A job that would run for years is ended early.
fn cancel(space: &Space) -> Result<(), Error> {
    let counter = AtomicU64::new(0);
    space.scope(|scope| {
        let job = scope.submit(work::atomic_add(&counter, 1, 1 << 60))?;
        if let Progress::Running(job) = job.wait_timeout(Duration::from_millis(10))? {
            job.cancel()?;
            match job.wait() {
                Err(Error::Job(failure)) => println!("cancelled: {failure}"),
                other => println!("not cancelled: {other:?}"),
            }
        }
        Ok(())
    })
}
