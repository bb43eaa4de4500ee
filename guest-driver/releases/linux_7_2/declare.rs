// SPDX-License-Identifier: GPL-2.0

//! The macros of a module, with what they take in Linux 7.3.

/// Declares a module. Parameters may be `bool`.
///
/// A parameter that is declared as `u8` for the macro of Linux 7.2, which has no `bool`, is one:
/// see [`module_param`](crate::module_param).
#[macro_export]
macro_rules! module {
    (@params [$($module:tt)*] [$($done:tt)*] $name:ident: bool $fields:tt, $($rest:tt)*) => {
        $crate::module! {
            @params [$($module)*] [$($done)* $name: u8 $fields,] $($rest)*
        }
    };
    (@params [$($module:tt)*] [$($done:tt)*] $name:ident: u32 $fields:tt, $($rest:tt)*) => {
        $crate::module! {
            @params [$($module)*] [$($done)* $name: u32 $fields,] $($rest)*
        }
    };
    (@params [$($module:tt)*] [$($done:tt)*]) => {
        $crate::macros::module! { $($module)* params: { $($done)* }, }
    };
    (
        type: $type:tt,
        name: $name:tt,
        authors: $authors:tt,
        description: $description:tt,
        license: $license:tt,
        $(params: { $($params:tt)* },)?
    ) => {
        $crate::module! {
            @params
            [
                type: $type,
                name: $name,
                authors: $authors,
                description: $description,
                license: $license,
            ]
            []
            $($($params)*)?
        }
    };
}

/// Declares the devices that a driver handles, none of them with data of its own.
#[macro_export]
macro_rules! module_device_table {
    ($kind:literal, $id:ty, $table:ident, @none, [$($device:expr),* $(,)?]) => {
        const $table: $crate::device_id::IdArray<
            $id,
            (),
            { <[$id]>::len(&[$($device,)*]) },
        > = $crate::device_id::IdArray::new_without_index([$(($device, ()),)*]);

        const _: () = {
            $crate::linux_7_2::module_device_table!($kind, ALIAS, $table);
        };
    };
}
