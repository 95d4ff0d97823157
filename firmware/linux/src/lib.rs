//! Triage on a flight computer with an operating system: the same runtime as on a microcontroller, fed from files.
//!
//! | module | what |
//! | --- | --- |
//! | [`input`] | models, prototype tables and tiles from files, checked against each other |
//! | [`assess`] | quality, embedding and scores of every tile, on all threads |
//! | [`outbox`] | the choice under a budget, the outbox written and read back |
//! | [`learn`] | prototypes from labelled tiles |
//! | [`units`] | sizes such as `64KiB` |

pub mod assess;
pub mod input;
mod kmeans;
pub mod learn;
mod logistic;
pub mod outbox;
pub mod units;

pub use outbox::{Outbox, Received, read_outbox};
