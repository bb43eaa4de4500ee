//! Multiplies two matrices.

use anyhow::Result;
use hmm::work::{self, Shape};
use hmm_tool::runner::WorkloadCtx;

use crate::cpu;

/// A product of square matrices, exact up to rounding.
pub(super) fn gemm(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let n = ctx.size();
    let mut matrix = || -> Vec<f32> { (0..n * n).map(|_| ctx.random.f32() * 2.0 - 1.0).collect() };
    let (a, b) = (matrix(), matrix());
    // With beta zero the device must not read C: a NaN would spread.
    let mut c = vec![f32::NAN; n * n];
    let shape = Shape::dense(n, n);
    ctx.on_device(work::gemm(
        1.0,
        (&a, shape),
        (&b, shape),
        0.0,
        (&mut c, shape),
    ))?;
    let mut expected = vec![0.0; n * n];
    ctx.on_cpu(|| cpu::gemm(n, &a, &b, &mut expected));
    let difference = cpu::gemm_difference(n, (&a, &b), &c, &expected);
    ctx.check_equal("first wrong row and column", difference, None);
    Ok(())
}
