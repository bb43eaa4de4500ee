//! Vectors of numbers, and the bytes of a file.

use anyhow::Result;
use hmm::work;

use super::{readable_file, Trial};
use crate::cpu;
use crate::memory::Mapping;

/// Numbers between -1 and 1.
fn floats(trial: &mut Trial<'_>, count: usize) -> Vec<f32> {
    (0..count).map(|_| trial.random.f32() * 2.0 - 1.0).collect()
}

/// `y += alpha * x`, to the last bit.
pub(super) fn axpy(trial: &mut Trial<'_>) -> Result<()> {
    let count = trial.size();
    let (x, mut y) = (floats(trial, count), floats(trial, count));
    let mut expected = y.clone();
    let alpha = trial.random.f32();
    trial.on_device(work::axpy(alpha.into(), &x, &mut y))?;
    trial.on_cpu(|| cpu::axpy(alpha, &x, &mut expected));
    let mut pairs = y.iter().zip(&expected);
    let difference = pairs.position(|(device, cpu)| device.to_bits() != cpu.to_bits());
    trial.check_equal("first difference", difference, None);
    Ok(())
}

/// The dot product, as near as additions in another order can be.
pub(super) fn dot(trial: &mut Trial<'_>) -> Result<()> {
    let count = trial.size();
    let (x, y) = (floats(trial, count), floats(trial, count));
    let device = trial.on_device(work::dot(&x, &y))?;
    let (cpu, tolerance) = trial.on_cpu(|| cpu::dot(&x, &y));
    let near = (device - cpu).abs() <= tolerance;
    trial.check(near, || {
        format!("{device} is further than {tolerance:e} from {cpu}")
    });
    Ok(())
}

/// Integers sorted.
pub(super) fn sort(trial: &mut Trial<'_>) -> Result<()> {
    let count = trial.size();
    let mut data: Vec<u64> = (0..count).map(|_| trial.random.u64(..)).collect();
    let mut expected = data.clone();
    let mut scratch = vec![0; count];
    trial.on_device(work::sort(&mut data, &mut scratch))?;
    trial.on_cpu(|| expected.sort_unstable());
    let difference = data
        .iter()
        .zip(&expected)
        .position(|(device, cpu)| device != cpu);
    trial.check_equal("first difference", difference, None);
    Ok(())
}

/// The bytes of a mapped file counted, in the page cache where they are.
pub(super) fn histogram(trial: &mut Trial<'_>) -> Result<()> {
    let path = readable_file(trial.file);
    let file = Mapping::file(&path)?;
    let bytes: &[u8] = file.numbers();
    trial.report.size = bytes.len();
    trial.report.note = format!("of {}", path.display());
    let mut counters = [0; 256];
    trial.on_device(work::histogram(bytes, &mut counters))?;
    let expected = trial.on_cpu(|| cpu::histogram(bytes));
    for (byte, (device, cpu)) in counters.into_iter().zip(expected).enumerate() {
        trial.check_equal(&format!("bytes of {byte:#04x}"), device, cpu);
    }
    Ok(())
}
