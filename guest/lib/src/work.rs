//! Operations on slices and pointers, typed.
//!
//! Each function makes a [`Work`] that borrows the memory that it will use, so that the job may run
//! as soon as it is submitted. The functions that follow pointers take any pointer: the device only
//! reads there, and an invalid pointer ends the job with a [`Status::Fault`](crate::Status::Fault).
//!
//! Only arguments are built here; nothing is submitted.

use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64};

use virtio_hmm_spec::wire::operation as op;
use virtio_hmm_spec::wire::operation::{Element, Operation};

use crate::failure::Values;
use crate::outcome::Decode;
use crate::sys::address_of;

/// An operation, the memory that it borrows for `'data`, and the type of its result.
#[must_use = "work is done when it is submitted"]
pub struct Work<'data, T> {
    operation: Operation,
    decode: Decode<T>,
    // Exclusive, because some of the memory may be written.
    data: PhantomData<&'data mut ()>,
}

impl<T> Work<'_, T> {
    fn new(operation: impl Into<Operation>, function: fn(Values, usize) -> T) -> Self {
        Self::counted(operation, 0, function)
    }

    fn counted(
        operation: impl Into<Operation>,
        count: usize,
        function: fn(Values, usize) -> T,
    ) -> Self {
        Self {
            operation: operation.into(),
            decode: Decode { function, count },
            data: PhantomData,
        }
    }

    /// The operation as it will be submitted.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    pub(crate) fn into_parts(self) -> (Operation, Decode<T>) {
        (self.operation, self.decode)
    }
}

impl<T> fmt::Debug for Work<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operation.fmt(f)
    }
}

mod sealed {
    pub trait Sealed {}
}

/// A number that the device can work on: plain bytes, every value of which is valid.
pub trait Number: sealed::Sealed + Copy + 'static {
    /// Its name on the wire.
    const ELEMENT: Element;
    /// The type of a sum of many.
    type Sum;
    /// The number with these bits, zero-extended.
    fn from_result(raw: u64) -> Self;
    /// The sum with these bits.
    fn sum_from_result(raw: u64) -> Self::Sum;
}

/// A floating point number.
pub trait Float: Number {}

macro_rules! numbers {
    ($( $type:ty: $element:ident, sum $sum:ty, |$raw:ident| $value:expr, $total:expr; )+) => { $(
        impl sealed::Sealed for $type {}
        impl Number for $type {
            const ELEMENT: Element = Element::$element;
            type Sum = $sum;
            fn from_result($raw: u64) -> Self {
                $value
            }
            fn sum_from_result($raw: u64) -> $sum {
                $total
            }
        }
    )+ };
}

/// The low half of a zero-extended result.
fn low(raw: u64) -> u32 {
    let [a, b, c, d, ..] = raw.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The signed number with the same bits.
fn signed(raw: u64) -> i64 {
    i64::from_ne_bytes(raw.to_ne_bytes())
}

numbers! {
    u32: U32, sum u64, |raw| low(raw), raw;
    u64: U64, sum u64, |raw| raw, raw;
    i64: I64, sum i64, |raw| signed(raw), signed(raw);
    f32: F32, sum f64, |raw| f32::from_bits(low(raw)), f64::from_bits(raw);
    f64: F64, sum f64, |raw| f64::from_bits(raw), f64::from_bits(raw);
}
impl Float for f32 {}
impl Float for f64 {}

/// An integer that the device can change atomically, together with the CPU.
pub trait Atomic: sealed::Sealed {
    /// The plain integer.
    type Plain: Number + Into<u64>;
}

impl sealed::Sealed for AtomicU32 {}
impl Atomic for AtomicU32 {
    type Plain = u32;
}
impl sealed::Sealed for AtomicU64 {}
impl Atomic for AtomicU64 {
    type Plain = u64;
}

fn read<T>(slice: &[T]) -> u64 {
    address_of(slice.as_ptr())
}

fn write<T>(slice: &mut [T]) -> u64 {
    address_of(slice.as_mut_ptr())
}

fn bytes<T>(slice: &[T]) -> u64 {
    size_of_val(slice) as u64
}

fn count<T>(slice: &[T]) -> u64 {
    slice.len() as u64
}

fn same_length(left: usize, right: usize) {
    assert_eq!(
        left, right,
        "the slices of one operation have different lengths"
    );
}

fn index(raw: u64) -> usize {
    // An index into a slice of this process fits its pointers.
    usize::try_from(raw).unwrap_or(usize::MAX)
}

/// Writes `pattern`, little-endian, over and over; a last partial pattern is cut short.
pub fn fill<T: Number>(destination: &mut [T], pattern: u64) -> Work<'_, ()> {
    let fill = op::Fill {
        destination: write(destination),
        bytes: bytes(destination),
        pattern,
    };
    Work::new(fill, |_, _| ())
}

/// Copies a slice.
///
/// # Panics
///
/// When the slices have different lengths.
pub fn copy<'data, T: Number>(source: &'data [T], destination: &'data mut [T]) -> Work<'data, ()> {
    same_length(source.len(), destination.len());
    let copy = op::Copy {
        source: read(source),
        destination: write(destination),
        bytes: bytes(source),
    };
    Work::new(copy, |_, _| ())
}

/// Finds the offset in bytes of the first difference.
///
/// # Panics
///
/// When the slices have different lengths.
pub fn compare<'data, T: Number>(
    left: &'data [T],
    right: &'data [T],
) -> Work<'data, Option<usize>> {
    same_length(left.len(), right.len());
    let compare = op::Compare {
        left: read(left),
        right: read(right),
        bytes: bytes(left),
    };
    Work::counted(compare, size_of_val(left), |[offset, ..], bytes| {
        Some(index(offset)).filter(|&offset| offset < bytes)
    })
}

/// The CRC-32C of a slice's bytes.
pub fn checksum<T: Number>(source: &[T]) -> Work<'_, u32> {
    let checksum = op::Checksum {
        source: read(source),
        bytes: bytes(source),
    };
    Work::new(checksum, |[sum, ..], _| low(sum))
}

/// The sum of all numbers; integers wrap.
pub fn sum<T: Number>(source: &[T]) -> Work<'_, T::Sum> {
    let sum = op::Sum {
        source: read(source),
        count: count(source),
        element: T::ELEMENT,
    };
    Work::new(sum, |[sum, ..], _| T::sum_from_result(sum))
}

/// The smallest or largest number of a slice, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extreme<T> {
    /// The number.
    pub value: T,
    /// The first index where it occurs.
    pub index: usize,
}

fn extreme<T: Number>([value, at, ..]: Values, count: usize) -> Option<Extreme<T>> {
    let index = index(at);
    (index < count).then(|| Extreme {
        value: T::from_result(value),
        index,
    })
}

/// The smallest number; none of an empty slice, or when all are NaN.
pub fn min<T: Number>(source: &[T]) -> Work<'_, Option<Extreme<T>>> {
    let min = op::Min {
        source: read(source),
        count: count(source),
        element: T::ELEMENT,
    };
    Work::counted(min, source.len(), extreme)
}

/// The largest number; none of an empty slice, or when all are NaN.
pub fn max<T: Number>(source: &[T]) -> Work<'_, Option<Extreme<T>>> {
    let max = op::Max {
        source: read(source),
        count: count(source),
        element: T::ELEMENT,
    };
    Work::counted(max, source.len(), extreme)
}

/// The dot product, summed in double precision.
///
/// # Panics
///
/// When the slices have different lengths.
pub fn dot<'data, T: Float>(x: &'data [T], y: &'data [T]) -> Work<'data, f64> {
    same_length(x.len(), y.len());
    let dot = op::Dot {
        x: read(x),
        y: read(y),
        count: count(x),
        element: T::ELEMENT,
    };
    Work::new(dot, |[sum, ..], _| f64::from_bits(sum))
}

/// `y[i] += alpha * x[i]`, with `alpha` rounded to the elements' type.
///
/// # Panics
///
/// When the slices have different lengths.
pub fn axpy<'data, T: Float>(alpha: f64, x: &'data [T], y: &'data mut [T]) -> Work<'data, ()> {
    same_length(x.len(), y.len());
    let axpy = op::Axpy {
        x: read(x),
        y: write(y),
        count: count(x),
        element: T::ELEMENT,
        alpha,
    };
    Work::new(axpy, |_, _| ())
}

/// The shape of a row-major matrix within a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// Elements from one row to the next; at least `columns`.
    pub stride: usize,
}

impl Shape {
    /// Rows that follow each other without a gap.
    pub fn dense(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            stride: columns,
        }
    }

    /// Elements from the first to the last.
    fn extent(&self) -> Option<usize> {
        match self.rows.checked_sub(1) {
            None => Some(0),
            Some(rows) => rows.checked_mul(self.stride)?.checked_add(self.columns),
        }
    }

    fn check(&self, name: &str, elements: usize) {
        let fits = self.extent().is_some_and(|extent| extent <= elements);
        assert!(
            self.stride >= self.columns && fits,
            "matrix {name} of {self:?} does not fit its {elements} elements"
        );
    }
}

/// `C = alpha * A * B + beta * C`. With `beta` zero, C is not read.
///
/// # Panics
///
/// When the shapes do not fit each other or their slices.
pub fn gemm<'data>(
    alpha: f32,
    (a, a_shape): (&'data [f32], Shape),
    (b, b_shape): (&'data [f32], Shape),
    beta: f32,
    (c, c_shape): (&'data mut [f32], Shape),
) -> Work<'data, ()> {
    a_shape.check("A", a.len());
    b_shape.check("B", b.len());
    c_shape.check("C", c.len());
    same_length(a_shape.columns, b_shape.rows);
    same_length(a_shape.rows, c_shape.rows);
    same_length(b_shape.columns, c_shape.columns);
    let gemm = op::Gemm {
        a: read(a),
        b: read(b),
        c: write(c),
        m: a_shape.rows as u64,
        n: b_shape.columns as u64,
        k: a_shape.columns as u64,
        a_stride: a_shape.stride as u64,
        b_stride: b_shape.stride as u64,
        c_stride: c_shape.stride as u64,
        alpha,
        beta,
    };
    Work::new(gemm, |_, _| ())
}

/// Sorts in ascending order. If the job fails, the contents of both slices are undefined.
///
/// # Panics
///
/// When `scratch` is shorter than `data`.
pub fn sort<'data>(data: &'data mut [u64], scratch: &'data mut [u64]) -> Work<'data, ()> {
    assert!(
        scratch.len() >= data.len(),
        "sorting needs scratch room as large as the data"
    );
    let sort = op::Sort {
        count: count(data),
        data: write(data),
        temporary: write(scratch),
    };
    Work::new(sort, |_, _| ())
}

/// Adds the number of times each byte value occurs to the counters.
pub fn histogram<'data>(source: &'data [u8], counters: &'data mut [u64; 256]) -> Work<'data, ()> {
    let histogram = op::Histogram {
        source: read(source),
        bytes: bytes(source),
        counters: write(counters),
    };
    Work::new(histogram, |_, _| ())
}

/// `destination[i] = table[index[i]]`.
///
/// An index outside the table ends the job with
/// [`Status::BadArgument`](crate::Status::BadArgument).
///
/// # Panics
///
/// When `index` and `destination` have different lengths.
pub fn gather<'data, T: Number>(
    table: &'data [T],
    index: &'data [u64],
    destination: &'data mut [T],
) -> Work<'data, ()> {
    same_length(index.len(), destination.len());
    let gather = op::Gather {
        table: read(table),
        table_count: count(table),
        index: read(index),
        destination: write(destination),
        count: count(index),
        element: T::ELEMENT,
    };
    Work::new(gather, |_, _| ())
}

/// `table[index[i]] = source[i]`, in ascending order of `i`.
///
/// An index outside the table ends the job with
/// [`Status::BadArgument`](crate::Status::BadArgument).
///
/// # Panics
///
/// When `source` and `index` have different lengths.
pub fn scatter<'data, T: Number>(
    source: &'data [T],
    index: &'data [u64],
    table: &'data mut [T],
) -> Work<'data, ()> {
    same_length(source.len(), index.len());
    let scatter = op::Scatter {
        source: read(source),
        index: read(index),
        table_count: count(table),
        table: write(table),
        count: count(index),
        element: T::ELEMENT,
    };
    Work::new(scatter, |_, _| ())
}

/// The layout of a list's node: offsets in bytes, as [`offset_of!`](core::mem::offset_of) gives
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListLayout {
    /// The pointer to the next node; null at the end.
    pub next: usize,
    /// The value, a `u64`.
    pub value: usize,
}

/// The result of a walk along a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListSummary {
    /// Nodes visited.
    pub nodes: u64,
    /// The wrapping sum of their values.
    pub sum: u64,
    /// The address of the first node that has the key.
    pub found: Option<u64>,
}

fn found(raw: u64) -> Option<u64> {
    Some(raw).filter(|&address| address != 0)
}

/// Walks a list from `head` on, adds up the values and searches for `key`.
///
/// More than `limit` nodes end the job with [`Status::Bound`](crate::Status::Bound), so a circular
/// list ends too.
pub fn list_walk<N>(
    head: *const N,
    layout: ListLayout,
    key: u64,
    limit: u64,
) -> Work<'static, ListSummary> {
    let walk = op::ListWalk {
        head: address_of(head),
        next_offset: layout.next as u64,
        value_offset: layout.value as u64,
        key,
        limit,
    };
    Work::new(walk, |[nodes, sum, at, _], _| ListSummary {
        nodes,
        sum,
        found: found(at),
    })
}

/// The layout of a binary tree's node: offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeLayout {
    /// The pointer to the left child, or null.
    pub left: usize,
    /// The pointer to the right child, or null.
    pub right: usize,
    /// The key or the value, a `u64`.
    pub value: usize,
}

/// The result of a search in a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeHit {
    /// The address of the node that has the key.
    pub found: Option<u64>,
    /// Nodes visited.
    pub visited: u64,
}

/// Searches a tree that is ordered by its values, the smaller ones to the left.
///
/// More than `limit` nodes end the job with [`Status::Bound`](crate::Status::Bound).
pub fn tree_search<N>(
    root: *const N,
    layout: TreeLayout,
    key: u64,
    limit: u64,
) -> Work<'static, TreeHit> {
    let search = op::TreeSearch {
        root: address_of(root),
        left_offset: layout.left as u64,
        right_offset: layout.right as u64,
        key_offset: layout.value as u64,
        key,
        limit,
    };
    Work::new(search, |[at, visited, ..], _| TreeHit {
        found: found(at),
        visited,
    })
}

/// The nodes of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeSummary {
    /// Nodes visited.
    pub nodes: u64,
    /// The wrapping sum of their values.
    pub sum: u64,
}

/// Visits every node of a tree and adds up the values.
///
/// More than `limit` nodes, or more than 65,536 levels, end the job with
/// [`Status::Bound`](crate::Status::Bound).
pub fn tree_sum<N>(root: *const N, layout: TreeLayout, limit: u64) -> Work<'static, TreeSummary> {
    let sum = op::TreeSum {
        root: address_of(root),
        left_offset: layout.left as u64,
        right_offset: layout.right as u64,
        value_offset: layout.value as u64,
        limit,
    };
    Work::new(sum, |[nodes, sum, ..], _| TreeSummary { nodes, sum })
}

/// The result of a breadth-first search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Vertices reached, the start included.
    pub vertices: u64,
    /// The greatest distance.
    pub depth: u64,
}

/// Breadth-first search of a graph in compressed sparse rows: the edges of vertex `v` are
/// `edges[offsets[v]..offsets[v + 1]]`. Writes each vertex' distance from `start` to
/// `levels`, `u32::MAX` where there is no path.
///
/// # Panics
///
/// When `offsets` is not one longer than `levels`, or `queue` shorter than `levels`.
pub fn bfs<'data>(
    offsets: &'data [u64],
    edges: &'data [u32],
    start: u64,
    levels: &'data mut [u32],
    queue: &'data mut [u32],
) -> Work<'data, Reach> {
    same_length(offsets.len(), levels.len() + 1);
    assert!(
        queue.len() >= levels.len(),
        "the queue needs room for every vertex"
    );
    let bfs = op::Bfs {
        offsets: read(offsets),
        edges: read(edges),
        vertex_count: count(levels),
        edge_count: count(edges),
        start,
        levels: write(levels),
        queue: write(queue),
    };
    Work::new(bfs, |[vertices, depth, ..], _| Reach { vertices, depth })
}

/// Adds `operand` `repeat` times, one atomic addition each. The result is the value before the last
/// one.
pub fn atomic_add<A: Atomic>(target: &A, operand: A::Plain, repeat: u64) -> Work<'_, A::Plain> {
    let add = op::AtomicAdd {
        address: address_of(target),
        element: A::Plain::ELEMENT,
        operand: operand.into(),
        repeat,
    };
    Work::new(add, |[previous, ..], _| A::Plain::from_result(previous))
}

/// Replaces the value; the result is the value before.
pub fn atomic_exchange<A: Atomic>(target: &A, value: A::Plain) -> Work<'_, A::Plain> {
    let exchange = op::AtomicExchange {
        address: address_of(target),
        element: A::Plain::ELEMENT,
        operand: value.into(),
    };
    Work::new(exchange, |[previous, ..], _| {
        A::Plain::from_result(previous)
    })
}

/// Replaces the value if it is `expected`. The result is the value before: `Ok` if it was replaced,
/// `Err` if not.
pub fn atomic_compare_exchange<A: Atomic>(
    target: &A,
    expected: A::Plain,
    value: A::Plain,
) -> Work<'_, Result<A::Plain, A::Plain>> {
    let exchange = op::AtomicCompareExchange {
        address: address_of(target),
        element: A::Plain::ELEMENT,
        expected: expected.into(),
        operand: value.into(),
    };
    Work::new(exchange, |[previous, replaced, ..], _| {
        let previous = A::Plain::from_result(previous);
        if replaced == 1 {
            Ok(previous)
        } else {
            Err(previous)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that a job with these results would have.
    fn decoded<T>(work: Work<'_, T>, values: Values) -> T {
        let (_, decode) = work.into_parts();
        (decode.function)(values, decode.count)
    }

    #[test]
    fn slices_become_addresses_and_lengths_in_the_operations_own_units() {
        let numbers = [1_u64, 2, 3];
        let address = numbers.as_ptr().addr() as u64;
        let Operation::Sum(sum) = sum(&numbers).operation() else {
            panic!("not a sum")
        };
        assert_eq!(
            (sum.source, sum.count, sum.element),
            (address, 3, Element::U64)
        );
        let Operation::Checksum(checksum) = checksum(&numbers).operation() else {
            panic!("not a checksum")
        };
        assert_eq!((checksum.source, checksum.bytes), (address, 24));
    }

    #[test]
    fn sorting_writes_to_the_data_and_to_the_scratch_room_not_the_other_way_round() {
        let (mut data, mut scratch) = ([3_u64, 1], [0_u64; 4]);
        let addresses = (data.as_ptr().addr() as u64, scratch.as_ptr().addr() as u64);
        let Operation::Sort(sort) = sort(&mut data, &mut scratch).operation() else {
            panic!("not a sort")
        };
        assert_eq!((sort.data, sort.temporary), addresses);
        assert_eq!(sort.count, 2);
    }

    #[test]
    fn a_sum_has_the_type_that_its_elements_add_up_to() {
        assert_eq!(decoded(sum(&[0_u32]), [1 << 40, 0, 0, 0]), 1_u64 << 40);
        assert_eq!(decoded(sum(&[0_i64]), [u64::MAX, 0, 0, 0]), -1_i64);
        assert_eq!(
            decoded(sum(&[0_f32]), [1.5_f64.to_bits(), 0, 0, 0]),
            1.5_f64
        );
    }

    #[test]
    fn an_index_at_the_end_means_that_there_is_none() {
        let two = [1.0_f32, 2.0];
        let bits = u64::from(2.0_f32.to_bits());
        assert_eq!(
            decoded(max(&two), [bits, 1, 0, 0]),
            Some(Extreme {
                value: 2.0,
                index: 1
            })
        );
        assert_eq!(decoded(max(&two), [0, 2, 0, 0]), None);
        assert_eq!(decoded(compare(&two, &two), [8, 0, 0, 0]), None);
        assert_eq!(decoded(compare(&two, &two), [7, 0, 0, 0]), Some(7));
    }

    #[test]
    fn a_null_pointer_was_not_found() {
        let layout = ListLayout { next: 0, value: 8 };
        let walk = || list_walk(std::ptr::null::<u64>(), layout, 5, 10);
        assert_eq!(
            decoded(walk(), [0; 4]),
            ListSummary {
                nodes: 0,
                sum: 0,
                found: None
            }
        );
        assert_eq!(decoded(walk(), [1, 5, 64, 0]).found, Some(64));
    }

    #[test]
    fn a_compare_exchange_tells_whether_it_replaced() {
        let target = AtomicU32::new(1);
        let exchange = || atomic_compare_exchange(&target, 1, 2);
        assert_eq!(decoded(exchange(), [1, 1, 0, 0]), Ok(1));
        assert_eq!(decoded(exchange(), [9, 0, 0, 0]), Err(9));
    }

    #[test]
    fn the_last_row_of_a_matrix_needs_no_gap_after_it() {
        let shape = Shape {
            rows: 2,
            columns: 3,
            stride: 5,
        };
        assert_eq!(shape.extent(), Some(8));
        shape.check("A", 8);
        assert_eq!(Shape { rows: 0, ..shape }.extent(), Some(0));
        assert_eq!(
            Shape {
                rows: 3,
                stride: usize::MAX,
                ..shape
            }
            .extent(),
            None
        );
    }

    #[test]
    #[should_panic(expected = "does not fit its 7 elements")]
    fn a_matrix_larger_than_its_slice_never_becomes_a_job() {
        Shape {
            rows: 2,
            columns: 3,
            stride: 5,
        }
        .check("A", 7);
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn slices_that_must_match_never_become_a_job_when_they_do_not() {
        let _ = dot(&[1.0_f32], &[1.0, 2.0]);
    }
}
