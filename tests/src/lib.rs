//! VM fixture.
