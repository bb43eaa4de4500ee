//! The rows, by chapter.
//!
//! A row begins in a process that has nothing on any device. It may leave behind anything that goes
//! with its process.

mod access;
mod areas;
mod coherent;
mod concurrency;
mod copies;
mod dirty;
mod ends;
mod exclusive;
mod failures;
mod fork;
mod jobs;
mod limits;
mod looks;
mod mappings;
mod migration;
mod mirroring;
mod moves;
mod order;
mod pins;
mod poison;
mod reaper;
mod shares;
mod tracking;
mod two_devices;
mod waits;

use crate::row::Chapter;

/// All chapters.
pub(crate) const CHAPTERS: &[Chapter] = &[
    mirroring::CHAPTER,
    migration::CHAPTER,
    moves::CHAPTER,
    fork::CHAPTER,
    dirty::CHAPTER,
    tracking::CHAPTER,
    exclusive::CHAPTER,
    areas::CHAPTER,
    mappings::CHAPTER,
    access::CHAPTER,
    jobs::CHAPTER,
    waits::CHAPTER,
    pins::CHAPTER,
    limits::CHAPTER,
    looks::CHAPTER,
    shares::CHAPTER,
    reaper::CHAPTER,
    ends::CHAPTER,
    poison::CHAPTER,
    failures::CHAPTER,
    copies::CHAPTER,
    coherent::CHAPTER,
    two_devices::CHAPTER,
    concurrency::CHAPTER,
    order::CHAPTER,
];
