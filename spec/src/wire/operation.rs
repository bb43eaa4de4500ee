//! What a job can do ("Operations").
//!
//! An [`Operation`] is the checked form of a [`JobDescriptor`]: one type per operation, whose
//! fields are its arguments in order. Decoding checks the code, the unused arguments and every
//! [`Element`]. The engine checks whether the values fit together
//! ([`Status::BadArgument`](super::command::Status::BadArgument)).
//!
//! Addresses are those of the job's space and need no alignment unless stated. Integers wrap. An
//! operation whose inputs and outputs overlap in a way that its documentation does not name has
//! unspecified results.

use super::job::{JobDescriptor, MAX_ARGUMENTS};
use zerocopy::little_endian::{U32, U64};

values! {
    /// The type of the elements that an operation works on.
    pub enum Element: u32 {
        /// Unsigned 32-bit integer.
        U32 = 1,
        /// Unsigned 64-bit integer.
        U64 = 2,
        /// Signed 64-bit integer.
        I64 = 3,
        /// IEEE 754 single precision.
        F32 = 4,
        /// IEEE 754 double precision.
        F64 = 5,
    }
}

impl Element {
    /// The size of one element in bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::U32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// Why a descriptor is not an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// There is no operation with this code.
    Unsupported,
    /// An unused argument is not zero, or an argument is not a value of its type.
    Malformed,
}

/// A value that can be an argument.
trait Argument: Sized {
    fn to_argument(self) -> u64;
    fn from_argument(raw: u64) -> Option<Self>;
}

impl Argument for u64 {
    fn to_argument(self) -> u64 {
        self
    }
    fn from_argument(raw: u64) -> Option<Self> {
        Some(raw)
    }
}

impl Argument for u32 {
    fn to_argument(self) -> u64 {
        self.into()
    }
    fn from_argument(raw: u64) -> Option<Self> {
        raw.try_into().ok()
    }
}

impl Argument for f32 {
    fn to_argument(self) -> u64 {
        self.to_bits().into()
    }
    fn from_argument(raw: u64) -> Option<Self> {
        u32::from_argument(raw).map(f32::from_bits)
    }
}

impl Argument for f64 {
    fn to_argument(self) -> u64 {
        self.to_bits()
    }
    fn from_argument(raw: u64) -> Option<Self> {
        Some(f64::from_bits(raw))
    }
}

impl Argument for Element {
    fn to_argument(self) -> u64 {
        self.raw().into()
    }
    fn from_argument(raw: u64) -> Option<Self> {
        u32::from_argument(raw).and_then(Element::from_raw)
    }
}

/// The name and the arguments of an operation, for reports and for checking prose.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The operation's code.
    pub code: u32,
    /// Its name.
    pub name: &'static str,
    /// Its arguments in order: name and type.
    pub arguments: &'static [(&'static str, &'static str)],
}

macro_rules! operations {
    ($(
        $(#[$meta:meta])*
        $code:literal $name:ident {
            $( $(#[$argument_meta:meta])* $argument:ident: $type:ident, )+
        }
    )+) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, PartialEq)]
            pub struct $name { $( $(#[$argument_meta])* pub $argument: $type, )+ }

            impl From<$name> for Operation {
                fn from(operation: $name) -> Self {
                    Self::$name(operation)
                }
            }
        )+

        /// What a job does, checked.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Operation { $( #[doc = stringify!($name)] $name($name), )+ }

        impl Operation {
            /// Every operation.
            pub const DESCRIPTIONS: &'static [Description] = &[ $( Description {
                code: $code,
                name: stringify!($name),
                arguments: &[ $( (stringify!($argument), stringify!($type)), )+ ],
            }, )+ ];

            /// The operation's name.
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$name(_) => stringify!($name), )+ }
            }

            /// The operation as a descriptor.
            pub fn encode(&self) -> JobDescriptor {
                let mut arguments = [U64::ZERO; MAX_ARGUMENTS];
                let mut slots = arguments.iter_mut();
                let operation: u32 = match self { $( Self::$name(operation) => {
                    $( if let Some(slot) = slots.next() {
                        *slot = U64::new(operation.$argument.to_argument());
                    } )+
                    $code
                } )+ };
                JobDescriptor { operation: U32::new(operation), reserved: U32::ZERO, arguments }
            }

            /// The operation of a descriptor.
            ///
            /// # Errors
            ///
            /// [`DecodeError`] names the mistake in the descriptor.
            pub fn decode(descriptor: &JobDescriptor) -> Result<Self, DecodeError> {
                let mut slots = descriptor.arguments.iter().map(|slot| slot.get());
                let operation = match descriptor.operation.get() {
                    $( $code => Self::$name($name { $(
                        $argument: slots
                            .next()
                            .and_then($type::from_argument)
                            .ok_or(DecodeError::Malformed)?,
                    )+ }), )+
                    _ => return Err(DecodeError::Unsupported),
                };
                if descriptor.reserved.get() != 0 || slots.any(|rest| rest != 0) {
                    return Err(DecodeError::Malformed);
                }
                Ok(operation)
            }
        }
    };
}

operations! {
    /// Writes a pattern of eight bytes (little-endian) over and over.
    1 Fill {
        /// First byte to write.
        destination: u64,
        /// How many bytes; a last partial pattern is cut short.
        bytes: u64,
        /// The pattern.
        pattern: u64,
    }

    /// Copies bytes; the ranges may overlap (as `memmove`).
    2 Copy {
        /// First byte to read.
        source: u64,
        /// First byte to write.
        destination: u64,
        /// How many bytes.
        bytes: u64,
    }

    /// Compares two ranges. Result 0: the offset of the first difference, or `bytes`.
    3 Compare {
        /// First byte of one range.
        left: u64,
        /// First byte of the other.
        right: u64,
        /// How many bytes.
        bytes: u64,
    }

    /// CRC-32C (Castagnoli) of a range. Result 0: the checksum.
    4 Checksum {
        /// First byte.
        source: u64,
        /// How many bytes.
        bytes: u64,
    }

    /// Adds up elements. Result 0: the sum; integers of 32 bits add up in 64 bits,
    /// floating point in double precision, whose bits are the result.
    5 Sum {
        /// First element.
        source: u64,
        /// How many.
        count: u64,
        /// Their type.
        element: Element,
    }

    /// Finds the smallest element; NaN is ignored. Result 0: the element's bits, zero-extended.
    /// Result 1: its index, the first one if several are equal; `count` if there is none.
    6 Min {
        /// First element.
        source: u64,
        /// How many.
        count: u64,
        /// Their type.
        element: Element,
    }

    /// Finds the largest element; results as for the smallest.
    7 Max {
        /// First element.
        source: u64,
        /// How many.
        count: u64,
        /// Their type.
        element: Element,
    }

    /// The dot product of two vectors of `F32` or `F64`, summed in double precision.
    /// Result 0: the bits of the sum (`F64`).
    8 Dot {
        /// First element of one vector.
        x: u64,
        /// First element of the other.
        y: u64,
        /// Elements in each.
        count: u64,
        /// `F32` or `F64`.
        element: Element,
    }

    /// `y[i] = alpha * x[i] + y[i]` for vectors of `F32` or `F64`, with one rounding
    /// after the product and one after the sum.
    9 Axpy {
        /// First element read.
        x: u64,
        /// First element changed.
        y: u64,
        /// Elements in each.
        count: u64,
        /// `F32` or `F64`.
        element: Element,
        /// The factor, as double precision; rounded to the element's type.
        alpha: f64,
    }

    /// `C = alpha * A * B + beta * C` for row-major matrices of `F32`. With `beta`
    /// zero, C is not read. C must not overlap A or B.
    10 Gemm {
        /// A: `m` rows of `k`.
        a: u64,
        /// B: `k` rows of `n`.
        b: u64,
        /// C: `m` rows of `n`.
        c: u64,
        /// Rows of A and C.
        m: u64,
        /// Columns of B and C.
        n: u64,
        /// Columns of A, rows of B.
        k: u64,
        /// Elements from one row of A to the next; at least `k`.
        a_stride: u64,
        /// Elements from one row of B to the next; at least `n`.
        b_stride: u64,
        /// Elements from one row of C to the next; at least `n`.
        c_stride: u64,
        /// The factor of the product.
        alpha: f32,
        /// The factor of the old value of C.
        beta: f32,
    }

    /// Sorts `U64` elements in ascending order. Both ranges are left in an unspecified state if the
    /// job does not end well.
    11 Sort {
        /// First element.
        data: u64,
        /// How many.
        count: u64,
        /// Room for as many elements, which the job may overwrite; must not overlap.
        temporary: u64,
    }

    /// Adds the number of times each byte value occurs to 256 counters of `U64`.
    12 Histogram {
        /// First byte.
        source: u64,
        /// How many bytes.
        bytes: u64,
        /// The counters; must not overlap the source.
        counters: u64,
    }

    /// `destination[i] = table[index[i]]`. An index outside the table ends the job
    /// with [`Status::BadArgument`](super::command::Status::BadArgument); result 0 is
    /// then `i`.
    13 Gather {
        /// First element of the table.
        table: u64,
        /// Elements in the table.
        table_count: u64,
        /// First index (`U64`).
        index: u64,
        /// First element written.
        destination: u64,
        /// Indices.
        count: u64,
        /// The type of the elements.
        element: Element,
    }

    /// `table[index[i]] = source[i]`, in ascending order of `i`. An index outside the
    /// table ends the job as for gather.
    14 Scatter {
        /// First element read.
        source: u64,
        /// First index (`U64`).
        index: u64,
        /// First element of the table.
        table: u64,
        /// Elements in the table.
        table_count: u64,
        /// Indices.
        count: u64,
        /// The type of the elements.
        element: Element,
    }

    /// Walks a list from node to node until a null pointer. Result 0: nodes visited. Result 1: the
    /// sum of their `U64` values. Result 2: the address of the first node whose value is `key`, or
    /// zero. More than `limit` nodes end the job with
    /// [`Status::Bound`](super::command::Status::Bound).
    15 ListWalk {
        /// Address of the first node, or zero.
        head: u64,
        /// Offset of the pointer to the next node, in bytes.
        next_offset: u64,
        /// Offset of the value, in bytes.
        value_offset: u64,
        /// Value to look for.
        key: u64,
        /// The most nodes to visit.
        limit: u64,
    }

    /// Searches a binary tree ordered by `U64` keys (smaller to the left). Result 0:
    /// the address of the node, or zero. Result 1: nodes visited.
    16 TreeSearch {
        /// Address of the root, or zero.
        root: u64,
        /// Offset of the pointer to the left child, in bytes.
        left_offset: u64,
        /// Offset of the pointer to the right child, in bytes.
        right_offset: u64,
        /// Offset of the key, in bytes.
        key_offset: u64,
        /// Key to look for.
        key: u64,
        /// The most nodes to visit.
        limit: u64,
    }

    /// Visits every node of a binary tree. Result 0: nodes visited. Result 1: the sum
    /// of their `U64` values. A tree with more than `limit` nodes, or deeper than
    /// 65,536, ends the job with [`Status::Bound`](super::command::Status::Bound).
    17 TreeSum {
        /// Address of the root, or zero.
        root: u64,
        /// Offset of the pointer to the left child, in bytes.
        left_offset: u64,
        /// Offset of the pointer to the right child, in bytes.
        right_offset: u64,
        /// Offset of the value, in bytes.
        value_offset: u64,
        /// The most nodes to visit.
        limit: u64,
    }

    /// Breadth-first search of a graph in compressed sparse rows. The job writes each
    /// vertex' distance from `start` to `levels` (`U32`), `u32::MAX` where there is no
    /// path. Result 0: vertices reached. Result 1: the greatest distance. An edge to a
    /// vertex that does not exist, or offsets that decrease or exceed `edge_count`,
    /// end the job with [`Status::BadArgument`](super::command::Status::BadArgument).
    18 Bfs {
        /// First of `vertex_count + 1` offsets (`U64`) into the edges.
        offsets: u64,
        /// First edge: the number (`U32`) of the vertex it leads to.
        edges: u64,
        /// Vertices; less than 2^32 - 1.
        vertex_count: u64,
        /// Edges.
        edge_count: u64,
        /// The vertex to start from.
        start: u64,
        /// First of `vertex_count` levels (`U32`).
        levels: u64,
        /// Room for `vertex_count` vertex numbers (`U32`), which the job may overwrite.
        queue: u64,
    }

    /// Atomically adds to a `U32` or `U64`, `repeat` times. Result 0: the value before the last
    /// addition.
    19 AtomicAdd {
        /// Address, a multiple of the element's size.
        address: u64,
        /// `U32` or `U64`.
        element: Element,
        /// What to add.
        operand: u64,
        /// How many times.
        repeat: u64,
    }

    /// Atomically replaces a `U32` or `U64`. Result 0: the old value.
    20 AtomicExchange {
        /// Address, a multiple of the element's size.
        address: u64,
        /// `U32` or `U64`.
        element: Element,
        /// The new value.
        operand: u64,
    }

    /// Atomically replaces a `U32` or `U64` if it equals `expected`. Result 0: the old value.
    /// Result 1: one if it was replaced, otherwise zero.
    21 AtomicCompareExchange {
        /// Address, a multiple of the element's size.
        address: u64,
        /// `U32` or `U64`.
        element: Element,
        /// The value to be replaced.
        expected: u64,
        /// The new value.
        operand: u64,
    }
}
