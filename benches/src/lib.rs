//! Benchmarks of Nadir; `benches/README.md` says what each measures and how to run it. Committed runs are in `benches/runs/`.
//!
//! This library holds what the measured programs share: which engine they run ([`engine`]), the process's clock ([`clock`]), and the
//! protocol of the peer scripts ([`worker`]).

pub mod clock;
pub mod engine;
pub mod worker;
