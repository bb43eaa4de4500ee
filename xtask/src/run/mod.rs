//! Uses what has been built: a session, the demonstration, the search, the tests. It does not know
//! how anything is built.

pub(crate) mod book;
pub(crate) mod demo;
pub(crate) mod explore;
mod harness;
mod junit;
mod ktap;
mod machines;
mod names;
mod report;
pub(crate) mod suite;
mod virtme_ng;
pub(crate) mod vm;
