//! Vectors of numbers, and the bytes of a file.

use anyhow::Result;
use hmm::work;
use hmm_tool::memory::Mapping;
use hmm_tool::runner::WorkloadCtx;

use super::file::readable_file;
use crate::cpu;

/// Numbers between -1 and 1.
fn floats(ctx: &mut WorkloadCtx<'_>, count: usize) -> Vec<f32> {
    (0..count).map(|_| ctx.random.f32() * 2.0 - 1.0).collect()
}

/// `y += alpha * x`; the results must be equal to the last bit.
pub(super) fn axpy(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let count = ctx.size();
    let (x, mut y) = (floats(ctx, count), floats(ctx, count));
    let mut expected = y.clone();
    let alpha = ctx.random.f32();
    ctx.on_device(work::axpy(alpha.into(), &x, &mut y))?;
    ctx.on_cpu(|| cpu::axpy(alpha, &x, &mut expected));
    let mut pairs = y.iter().zip(&expected);
    let difference = pairs.position(|(device, cpu)| device.to_bits() != cpu.to_bits());
    ctx.check_equal("first difference", difference, None);
    Ok(())
}

/// The dot product; the result may differ by as much as another order of additions.
pub(super) fn dot(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let count = ctx.size();
    let (x, y) = (floats(ctx, count), floats(ctx, count));
    let device = ctx.on_device(work::dot(&x, &y))?;
    let (cpu, tolerance) = ctx.on_cpu(|| cpu::dot(&x, &y));
    let near = (device - cpu).abs() <= tolerance;
    ctx.check(near, || {
        format!("{device} is further than {tolerance:e} from {cpu}")
    });
    Ok(())
}

/// Sorts integers.
pub(super) fn sort(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let count = ctx.size();
    let mut data: Vec<u64> = (0..count).map(|_| ctx.random.u64(..)).collect();
    let mut expected = data.clone();
    let mut scratch = vec![0; count];
    ctx.on_device(work::sort(&mut data, &mut scratch))?;
    ctx.on_cpu(|| expected.sort_unstable());
    let difference = data
        .iter()
        .zip(&expected)
        .position(|(device, cpu)| device != cpu);
    ctx.check_equal("first difference", difference, None);
    Ok(())
}

/// Counts the bytes of a mapped file, in place in the page cache.
pub(super) fn histogram(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let path = readable_file(ctx.file);
    let file = Mapping::file(&path)?;
    let bytes: &[u8] = file.numbers();
    ctx.report.size = bytes.len();
    ctx.report.note = format!("of {}", path.display());
    let mut counters = [0; 256];
    ctx.on_device(work::histogram(bytes, &mut counters))?;
    let expected = ctx.on_cpu(|| cpu::histogram(bytes));
    for (byte, (device, cpu)) in counters.into_iter().zip(expected).enumerate() {
        ctx.check_equal(&format!("bytes of {byte:#04x}"), device, cpu);
    }
    Ok(())
}
