//! Engines in parallel, and the matrix product against the crate that computes it.

use std::hint::black_box;
use std::time::Instant;

use hmm_bench::{Bench, Per, Turn};
use ndarray::linalg::general_mat_mul;
use ndarray::Array2;
use vhost_device_hmm::device::DeviceConfig;
use virtio_hmm_spec::wire::operation::{Checksum, Operation};

use crate::jobs::{gemm, ORDER};
use crate::machine::{Leaves, Machine, BASE, MEMORY};

/// Bytes of a job's operand.
const BYTES: u64 = 32 << 20;

/// Measures two jobs on two engines, then the matrix product.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("engines");
    side_by_side(bench);
    product(bench);
}

/// Two jobs on two engines, against the same two on a device that has one.
fn side_by_side(bench: &mut Bench) {
    let machine = |engines| {
        Machine::with(DeviceConfig {
            memory: MEMORY,
            engines,
            ..DeviceConfig::default()
        })
    };
    let (one, two) = (machine(1), machine(2));
    for (name, per, job) in [
        // Limited by memory bandwidth, which the engines share.
        ("checksum", Per::Bytes(2 * BYTES), checksum as Job),
        // Limited by the processor; each engine needs one.
        ("gemm 512", Per::Flops(2 * flops()), gemm),
    ] {
        let jobs = [0, 1].map(|place| (Leaves::Large.space(), job(BASE + place * 2 * BYTES)));
        let name = format!("two jobs on two engines, {name}");
        bench.pair(&name, per, "on one engine", |turn| match turn {
            Turn::Measured => two.run_all(&jobs),
            Turn::Reference => one.run_all(&jobs),
        });
    }
}

/// Makes a job whose operands begin at an address.
type Job = fn(u64) -> Operation;

fn checksum(source: u64) -> Operation {
    Checksum {
        source,
        bytes: BYTES,
    }
    .into()
}

/// Additions and multiplications of a product.
fn flops() -> u64 {
    2 * ORDER * ORDER * ORDER
}

/// The product by a job, against one call of the crate that the operation uses for its blocks.
fn product(bench: &mut Bench) {
    let machine = Machine::new();
    let side = usize::try_from(ORDER).expect("a size");
    let a = Array2::from_elem((side, side), 0.5_f32);
    let b = Array2::from_elem((side, side), 0.25_f32);
    let mut c = Array2::zeros((side, side));
    for leaves in [Leaves::Small, Leaves::Large] {
        let name = format!("gemm 512, {}", leaves.name());
        bench.pair(&name, Per::Flops(flops()), "ndarray", |turn| match turn {
            Turn::Measured => machine.run(leaves, gemm(BASE)),
            Turn::Reference => {
                let start = Instant::now();
                general_mat_mul(1.0, &a, &b, 0.0, &mut c);
                black_box(&mut c);
                Ok(start.elapsed())
            }
        });
    }
}
