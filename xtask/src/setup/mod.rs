//! The base of the other commands: the toolbox, kernels, the driver and the programs, built and
//! cached. It does not know what they are used for.

mod archive;
mod boot_image;
mod boot_modules;
pub(crate) mod browser;
pub(crate) mod cache;
pub(crate) mod cargo;
pub(crate) mod clean;
mod compilers;
mod debian;
pub(crate) mod driver;
pub(crate) mod host;
pub(crate) mod kernel;
mod kernel_tests;
pub(crate) mod kvm;
pub(crate) mod library;
pub(crate) mod mdbook;
pub(crate) mod needs;
pub(crate) mod out;
mod panics;
pub(crate) mod perfetto;
pub(crate) mod prepare;
pub(crate) mod progress;
mod release;
pub(crate) mod root;
pub(crate) mod site;
mod space;
pub(crate) mod toolbox;
pub(crate) mod tree;
mod tree_modules;
mod userland;
