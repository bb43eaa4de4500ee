//! Two matrices multiplied.

use anyhow::Result;
use hmm::work::{self, Shape};

use super::Trial;
use crate::cpu;

/// A product of square matrices, as near as rounding allows.
pub(super) fn gemm(trial: &mut Trial<'_>) -> Result<()> {
    let n = trial.size();
    let mut matrix =
        || -> Vec<f32> { (0..n * n).map(|_| trial.random.f32() * 2.0 - 1.0).collect() };
    let (a, b) = (matrix(), matrix());
    // With beta zero the device must not read this: it would spread.
    let mut c = vec![f32::NAN; n * n];
    let shape = Shape::dense(n, n);
    trial.on_device(work::gemm(
        1.0,
        (&a, shape),
        (&b, shape),
        0.0,
        (&mut c, shape),
    ))?;
    let mut expected = vec![0.0; n * n];
    trial.on_cpu(|| cpu::gemm(n, &a, &b, &mut expected));
    let difference = cpu::gemm_difference(n, (&a, &b), &c, &expected);
    trial.check_equal("first wrong row and column", difference, None);
    Ok(())
}
