//! Types that describe their own layout, so that prose can be checked against it.

/// One field of a structure that crosses a boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The field's name.
    pub name: &'static str,
    /// Its type as in the source.
    pub type_name: &'static str,
    /// Its offset from the start of the structure, in bytes.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// A structure whose layout is part of the interface.
pub trait Layout {
    /// The structure's name.
    const NAME: &'static str;
    /// Its size in bytes.
    const SIZE: usize;
    /// Its fields in order; they leave no gap.
    const FIELDS: &'static [Field];
}

/// One named value of a set.
pub type Value = (&'static str, u32);

/// A set of named values that is part of the interface.
pub trait Values {
    /// The set's name.
    const NAME: &'static str;
    /// The values with their names, in ascending order.
    const VALUES: &'static [Value];
}

/// Declares structures with a fixed layout without padding.
///
/// The zerocopy derives refuse to compile a structure that has padding.
macro_rules! layout {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )+ }
    )+) => { $(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy_derive::FromBytes, zerocopy_derive::IntoBytes,
            zerocopy_derive::Immutable, zerocopy_derive::KnownLayout,
        )]
        #[repr(C)]
        pub struct $name { $( $(#[$field_meta])* pub $field: $type, )+ }

        impl $crate::wire::Layout for $name {
            const NAME: &'static str = stringify!($name);
            const SIZE: usize = core::mem::size_of::<$name>();
            const FIELDS: &'static [$crate::wire::Field] = &[ $( $crate::wire::Field {
                name: stringify!($field),
                type_name: stringify!($type),
                offset: core::mem::offset_of!($name, $field),
                size: core::mem::size_of::<$type>(),
            }, )+ ];
        }
    )+ };
}

/// Declares a set of values as an enumeration with checked conversion.
macro_rules! values {
    (
        $(#[$meta:meta])*
        pub enum $name:ident: $raw:ty { $( $(#[$value_meta:meta])* $value:ident = $number:literal, )+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($raw)]
        pub enum $name { $( $(#[$value_meta])* $value = $number, )+ }

        impl $name {
            /// The value with this number, if there is one.
            pub const fn from_raw(raw: $raw) -> Option<Self> {
                match raw {
                    $( $number => Some(Self::$value), )+
                    _ => None,
                }
            }

            /// The value's number.
            pub const fn raw(self) -> $raw {
                self as $raw
            }

            /// The value's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$value => stringify!($value), )+
                }
            }
        }

        impl $crate::wire::Values for $name {
            const NAME: &'static str = stringify!($name);
            const VALUES: &'static [$crate::wire::Value] =
                &[ $( (stringify!($value), $number), )+ ];
        }
    };
}
