//! The product of matrices.
//!
//! C is computed block by block. A block of C stays in scratch while panels of A and B pass. Each
//! element of C is read and written once, and written only at the end.

use super::block::Block;
use super::kernels;
use super::range::{Progress, Range};
use super::step::{Fault, Memory, Run, Step, STEP_BYTES};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation;
use virtio_hmm_spec::wire::rights::{READ, WRITE};

/// The size of an element.
const SIZE: usize = size_of::<f32>();

/// The largest block of C. It stays in the second-level cache together with the panels, and few
/// bytes are copied for each multiplication.
const BLOCK_ROWS: usize = 256;
/// See [`BLOCK_ROWS`].
const BLOCK_COLUMNS: usize = 256;

/// Columns of a panel of A and rows of a panel of B. The product of two panels, which is one step,
/// takes about 100 µs.
const BLOCK_DEPTH: usize = 64;

/// A product and its progress.
#[derive(Debug)]
pub(super) struct Gemm {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    alpha: f32,
    beta: f32,
    /// The first row of the block of C.
    rows: Progress,
    /// The first column of the block of C.
    columns: Progress,
    /// The first column of the panel of A, which is the first row of that of B.
    depth: Progress,
    state: State,
    a_block: Block,
    b_block: Block,
    c_block: Block,
}

/// The next part of the work on the block of C, and how many rows of it are done.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Reading the block.
    LoadC(usize),
    /// Reading a panel of A.
    LoadA(usize),
    /// Reading a panel of B.
    LoadB(usize),
    /// Writing the block.
    StoreC(usize),
}

/// A matrix in memory, row by row.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    range: Range,
    /// Elements from one row to the next.
    stride: u64,
    /// Whether rows are so close together that each page holds some.
    dense: bool,
}

impl Matrix {
    fn new(address: u64, rows: u64, columns: u64, stride: u64) -> Result<Self, Status> {
        if stride < columns {
            return Err(Status::BadArgument);
        }
        let count = if rows == 0 || columns == 0 {
            0
        } else {
            (rows - 1)
                .checked_mul(stride)
                .and_then(|count| count.checked_add(columns))
                .ok_or(Status::BadArgument)?
        };
        let dense = stride - columns < 4096 / SIZE as u64;
        Ok(Self {
            range: Range::new(address, count, SIZE as u64)?,
            stride,
            dense,
        })
    }

    fn offset(self, row: u64, column: u64) -> u64 {
        (row * self.stride + column) * SIZE as u64
    }

    /// The address of an element.
    fn at(self, row: u64, column: u64) -> u64 {
        self.range.at(self.offset(row, column))
    }

    /// Announces the elements from here on.
    fn expect_from(self, memory: &mut impl Memory, row: u64, column: u64, access: u32) {
        if self.dense {
            self.range
                .expect_from(memory, self.offset(row, column), access);
        }
    }
}

/// Bytes that may still be moved in this step.
struct Budget(usize);

impl Budget {
    /// Subtracts a row; returns whether anything was left.
    fn take(&mut self, bytes: usize) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(bytes);
        left
    }
}

impl Gemm {
    pub(super) fn new(operation: operation::Gemm) -> Result<Self, Status> {
        let operation::Gemm {
            a,
            b,
            c,
            m,
            n,
            k,
            a_stride,
            b_stride,
            c_stride,
            alpha,
            beta,
        } = operation;
        let (a, b) = (
            Matrix::new(a, m, k, a_stride)?,
            Matrix::new(b, k, n, b_stride)?,
        );
        let c = Matrix::new(c, m, n, c_stride)?;
        let (rows, columns, depth) = (Progress::new(m), Progress::new(n), Progress::new(k));
        let (m, n) = (rows.next(BLOCK_ROWS), columns.next(BLOCK_COLUMNS));
        let k = depth.next(BLOCK_DEPTH);
        Ok(Self {
            a,
            b,
            c,
            alpha,
            beta,
            rows,
            columns,
            depth,
            state: State::LoadC(0),
            a_block: Block::new(m * k * SIZE)?,
            b_block: Block::new(k * n * SIZE)?,
            c_block: Block::new(m * n * SIZE)?,
        })
    }

    /// Rows and columns of the block of C, and columns of the panel of A.
    fn shape(&self) -> (usize, usize, usize) {
        let (rows, columns) = (self.rows.next(BLOCK_ROWS), self.columns.next(BLOCK_COLUMNS));
        (rows, columns, self.depth.next(BLOCK_DEPTH))
    }

    /// Reads the block of C and multiplies it by beta; returns whether that is done.
    fn load_c(&mut self, memory: &mut impl Memory, budget: &mut Budget) -> Result<bool, Fault> {
        let (m, n, _) = self.shape();
        let State::LoadC(done) = &mut self.state else {
            return Ok(true);
        };
        if self.beta == 0.0 {
            self.c_block.get_mut::<f32>(m * n).fill(0.0);
            return Ok(true);
        }
        let (row, column) = (self.rows.done(), self.columns.done());
        self.c
            .expect_from(memory, row + *done as u64, column, WRITE);
        while *done < m {
            if !budget.take(n * SIZE) {
                return Ok(false);
            }
            let address = self.c.at(row + *done as u64, column);
            // Reserved before the read, so that one fault makes the page present for both.
            memory.reserve(address, (n * SIZE) as u64)?;
            let start = *done * n * SIZE;
            memory.read(
                address,
                &mut self.c_block.get_mut(start + n * SIZE)[start..],
            )?;
            kernels::scale_f32(
                self.beta,
                &mut self.c_block.get_mut(*done * n + n)[*done * n..],
            );
            *done += 1;
        }
        Ok(true)
    }

    /// Writes the block of C; returns whether that is done.
    fn store_c(&mut self, memory: &mut impl Memory, budget: &mut Budget) -> Result<bool, Fault> {
        let (m, n, _) = self.shape();
        let State::StoreC(done) = &mut self.state else {
            return Ok(true);
        };
        let (row, column) = (self.rows.done(), self.columns.done());
        self.c
            .expect_from(memory, row + *done as u64, column, WRITE);
        while *done < m {
            if !budget.take(n * SIZE) {
                return Ok(false);
            }
            let start = *done * n * SIZE;
            let values = &self.c_block.get(start + n * SIZE)[start..];
            memory.write(self.c.at(row + *done as u64, column), values)?;
            *done += 1;
        }
        Ok(true)
    }

    /// Adds the product of the panels to the block of C.
    fn multiply(&mut self) {
        let (m, n, k) = self.shape();
        let a = ArrayView2::from_shape((m, k), self.a_block.get::<f32>(m * k));
        let b = ArrayView2::from_shape((k, n), self.b_block.get::<f32>(k * n));
        let c = ArrayViewMut2::from_shape((m, n), self.c_block.get_mut::<f32>(m * n));
        let (Ok(a), Ok(b), Ok(mut c)) = (a, b, c) else {
            unreachable!("the blocks have the size of their shape")
        };
        general_mat_mul(self.alpha, &a, &b, 1.0, &mut c);
    }
}

/// Reads rows of a panel into a block; returns whether that is done.
fn load_panel(
    memory: &mut impl Memory,
    budget: &mut Budget,
    matrix: Matrix,
    (row, column): (u64, u64),
    (rows, columns): (usize, usize),
    block: &mut Block,
    done: &mut usize,
) -> Result<bool, Fault> {
    matrix.expect_from(memory, row + *done as u64, column, READ);
    let bytes = columns * SIZE;
    while *done < rows {
        if !budget.take(bytes) {
            return Ok(false);
        }
        let start = *done * bytes;
        let into = &mut block.get_mut(start + bytes)[start..];
        memory.read(matrix.at(row + *done as u64, column), into)?;
        *done += 1;
    }
    Ok(true)
}

impl Run for Gemm {
    fn step(&mut self, memory: &mut impl Memory) -> Result<Step, Fault> {
        if self.rows.finished() || self.columns.total() == 0 {
            return Ok(Step::Done(Status::Ok, [0; 4]));
        }
        let mut budget = Budget(STEP_BYTES);
        let (m, n, k) = self.shape();
        let (row, column, depth) = (self.rows.done(), self.columns.done(), self.depth.done());
        loop {
            match &mut self.state {
                State::LoadC(_) => {
                    if !self.load_c(memory, &mut budget)? {
                        return Ok(Step::More);
                    }
                    self.state = if k > 0 {
                        State::LoadA(0)
                    } else {
                        State::StoreC(0)
                    };
                }
                State::LoadA(done) => {
                    let (corner, block) = ((row, depth), &mut self.a_block);
                    if !load_panel(memory, &mut budget, self.a, corner, (m, k), block, done)? {
                        return Ok(Step::More);
                    }
                    self.state = State::LoadB(0);
                }
                State::LoadB(done) => {
                    let (corner, block) = ((depth, column), &mut self.b_block);
                    if !load_panel(memory, &mut budget, self.b, corner, (k, n), block, done)? {
                        return Ok(Step::More);
                    }
                    self.multiply();
                    self.depth.advance(k);
                    let finished = self.depth.finished();
                    self.state = if finished {
                        State::StoreC(0)
                    } else {
                        State::LoadA(0)
                    };
                    return Ok(Step::More);
                }
                State::StoreC(_) => {
                    if !self.store_c(memory, &mut budget)? {
                        return Ok(Step::More);
                    }
                    self.next_block(m, n);
                    return Ok(Step::more_until(self.rows.finished(), [0; 4]));
                }
            }
        }
    }
}

impl Gemm {
    /// Moves to the next block of C.
    fn next_block(&mut self, rows: usize, columns: usize) {
        self.depth = Progress::new(self.depth.total());
        self.state = State::LoadC(0);
        self.columns.advance(columns);
        if self.columns.finished() {
            self.columns = Progress::new(self.columns.total());
            self.rows.advance(rows);
        }
    }
}
