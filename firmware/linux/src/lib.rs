//! Triage on a flight computer with an operating system: the same runtime as on a microcontroller, fed from files.
//!
//! | module | what |
//! | --- | --- |
//! | [`input`] | models, prototype tables and tiles from files, checked against each other |
//! | [`assess`] | quality, embedding and scores of every tile, on all threads |
//! | [`mod@fill`] | the choice under a budget, and the frames that are sent |
//! | [`outbox`] | an outbox read back, damaged or not |
//! | [`learn`] | prototypes from labelled tiles |
//! | [`units`] | sizes such as `64KiB` |

pub mod assess;
pub mod fill;
pub mod input;
mod kmeans;
pub mod learn;
mod logistic;
pub mod outbox;
pub mod units;

pub use outbox::{Outbox, Received, read_outbox};
